"""A network's forward and backward pass on some rows, layer by layer: what `net.explain` returns."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..backends import Array
from ..common.notebook import table
from ..layers.base import Layer
from ..layers.container import Container
from ..losses.losses import Loss
from .history import counted
from .probe import Probe, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = "shape", "mean", "std", "min", "max", "zeros"
TERMINAL = 100, 24  # columns and lines if the output is not a terminal
NO_BREAK = "\u00a0"  # no-break space
LONGEST = 60  # characters of a layer's repr, in which a user's layer may show whole arrays


class Statistics(NamedTuple):
    """An array's shape; the mean, standard deviation, minimum and maximum of its finite entries (NaN if it has none);
    the fraction of zeros among all entries; the number of entries that are NaN or infinite.
    """

    shape: tuple[int, ...]
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    not_finite: int


def statistics(a: np.ndarray) -> Statistics:
    """Return the statistics of a NumPy array, computed in float64."""
    entries = a.astype(np.float64).ravel()
    finite = entries[np.isfinite(entries)]
    mean = std = low = high = math.nan
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        top = max(-low, high)
        unit = top if top > 1e100 or 0 < top < 1e-100 else 1.0  # so that squares neither overflow nor vanish
        mean, std = float((finite / unit).mean()) * unit, float((finite / unit).std()) * unit
    zeros = float((entries == 0).mean()) if entries.size else math.nan
    return Statistics(a.shape, mean, std, low, high, zeros, entries.size - finite.size)


class Section(NamedTuple):
    """A layer in one of the two passes: its depth and name, its formula, and its arrays by name or a note."""

    depth: int
    name: str
    title: str
    formula: str
    arrays: dict[str, Array]
    note: str = ""


class Explanation(Mapping[str, Trace]):
    """A forward and a backward pass in training mode, layer by layer. Print it, show it in a notebook, or `plot` it.

    The forward pass shows the output of each layer, the backward pass each gradient, with the layer's formula: the
    shape, mean, standard deviation, minimum, maximum and share of zeros, and the number of entries that are NaN or
    infinite, if there are any. "dx" is dL/dx, "dweight" the gradient of the layer's `weight`.

    The arrays stay on the backend. `explanation["0"]` is the call of layer "0", with `x`, `y`, `dy`, `dx` and
    `gradients`, and `explanation["2.dense"]` that of a layer within layer "2"; iterating gives the names in the order
    of the forward pass. A second call of a layer is named "2.dense#2"; `gradients` are then those of all its calls.

    Attributes: `x` and `target` as the network and its loss take them; `prediction`; `value`, the loss; `dprediction`,
    its derivative by the prediction; `dx` and `gradients`, as `net.value_and_grad` returns them; `net`, a copy of the
    network as it was; `fault`, the first layer (None: the loss) that is not finite and a description, or None.
    """

    def __init__(self, probe: Probe, loss: Loss, target: Array, value: Array, dprediction: Array):
        whole = probe.traces[0]
        self.net, self.loss = probe.net, loss
        self.x, self.target, self.prediction = whole.x, target, whole.y
        self.value, self.dprediction = value, dprediction
        self.dx, self.gradients = whole.dx, whole.gradients
        self.fault = probe.first_fault(value)
        self.outermost = [whole] if probe.net.parts()[:1] == [("", probe.net)] else whole.inner
        self._traces: dict[str, Trace] = {}
        for trace in walk(self.outermost):
            name, n = trace.name, 1
            while name in self._traces:
                n += 1
                name = f"{trace.name}#{n}"
            self._traces[name] = trace

    def __getitem__(self, name: str) -> Trace:
        try:
            return self._traces[name]
        except KeyError:
            raise KeyError(f"no layer {name!r} in this network, which has {', '.join(map(repr, self))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._traces)

    def __len__(self) -> int:
        return len(self._traces)

    def statistics(self, a: Array) -> Statistics:
        """Return the statistics of one of the arrays. Waits for the device."""
        return statistics(self.net.backend.to_numpy(a))

    def plot(self, row: int = 0, columns: int = 4) -> "Figure":
        """Plot every layer's output and gradient, as `xpnet.plots.explanation` does; returns matplotlib's figure."""
        from .. import plots

        return plots.explanation(self, row, columns)

    # --- the two passes -------------------------------------------------------------------------------------------

    def _forward(self) -> Iterator[Section]:
        shown = {id(self.x)}
        yield Section(0, "", "input", "", {"x": self.x})
        for trace in walk(self.outermost):
            arrays = {"x": trace.x} if id(trace.x) not in shown else {}
            shown |= {id(trace.x), id(trace.y)}
            if not (trace.inner and trace.y is trace.inner[-1].y):  # else the inner layer shows y
                arrays["y"] = trace.y
            yield self._section(trace, 0, arrays)
        yield Section(0, "", repr(self.loss), self._loss_formula(0), {"target": self.target})

    def _backward(self) -> Iterator[Section]:
        yield Section(0, "", repr(self.loss), self._loss_formula(1), {"dy": self.dprediction})
        shown = {id(self.dprediction)}
        for trace in walk(self.outermost, back=True):
            arrays = {"dy": trace.dy} if trace.dy is not None and id(trace.dy) not in shown else {}
            if not trace.layer._children():
                arrays |= {f"d{name}": gradient for name, gradient in trace.gradients.items()}
            if trace.dx is not None and not (trace.inner and trace.dx is trace.inner[0].dx):
                arrays["dx"] = trace.dx
            shown |= {id(trace.dy), id(trace.dx)}
            yield self._section(trace, 1, arrays)

    def _section(self, trace: Trace, way: int, arrays: dict[str, Array]) -> Section:
        layer, depth, note = trace.layer, trace.depth - self.outermost[0].depth, ""
        if way and trace.dy is None:
            note = "no gradient reaches it"
        elif way and trace.dx is None and layer.takes == "integers":
            note = "no dx: its x is of integers"
        title = textwrap.shorten(repr(layer), LONGEST, placeholder=" ...")
        if isinstance(layer, Container):  # its layers follow
            title = type(layer).__name__
        return Section(depth, trace.name, title, formula_of(layer, way), arrays, note)

    def _loss_formula(self, way: int) -> str:
        formula = formula_of(self.loss, way, "terms")
        if not formula or getattr(self.loss, "reduction", "") != "mean":
            return formula
        return f"{formula}, divided by {float(self.loss.divisor(self.prediction, self.target)):g}"

    def _passes(self) -> list[tuple[str, list[Section]]]:
        return [("Forward", list(self._forward())), ("Backward", list(self._backward()))]

    # --- as text and as HTML --------------------------------------------------------------------------------------

    def _heading(self) -> str:
        rows, layers, net = counted(self.x.shape[0], "row"), counted(len(self.net.leaves()), "layer"), self.net
        return f"{rows} through {layers}, {net.dtype} on {net.backend.describe()}"

    def _verdict(self) -> str:
        text = f"loss {number(float(self.value))}"
        if self.fault is None:
            return text
        return f"{text}; the first that is not finite: {self.fault[0] or 'the loss'}, {self.fault[1]}"

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def text(self, width: int | None = None) -> str:
        """Return both passes as text, with formulas wrapped at `width` columns; None takes the terminal's width.

        The rows of numbers are about 60 to 75 columns wide in any case.
        """
        import shutil

        width = width or shutil.get_terminal_size(TERMINAL).columns
        passes = [(title, [(s, self._cells(s)) for s in sections]) for title, sections in self._passes()]
        cells = [row for _, sections in passes for _, rows in sections for row in rows]
        head = ["", *COLUMNS, *["not finite"] * any(row[-1] for row in cells)]
        head[0] = "Backward".ljust(max(len(row[0]) for row in cells))
        first, *table_lines = aligned([head, *(row[: len(head)] for row in cells)])
        remaining = iter(table_lines)
        lines = [self._heading()]
        for title, sections in passes:
            lines += ["", title.ljust(len("Backward")) + first.removeprefix("Backward"), "-" * len(first)]
            for section, rows in sections:
                lines += [*heading(section, width), *(next(remaining).rstrip() for _ in rows)]
            if title == "Forward":
                lines += textwrap.wrap(self._verdict(), width)
        return "\n".join(lines)

    def _cells(self, section: Section) -> list[list[str]]:
        """Return a row of cells for each array of a section: its name, indented, and its statistics."""
        rows = []
        for name, a in section.arrays.items():
            s = self.statistics(a)
            shape = "×".join(map(str, s.shape)) or "1"
            numbers = [number(v) for v in (s.mean, s.std, s.min, s.max)]
            label = f"{'  ' * (section.depth + 1)}{name}"
            rows.append([label, shape, *numbers, share(s.zeros), str(s.not_finite or "")])
        return rows

    def _repr_html_(self) -> str:
        passes = []
        for title, sections in self._passes():
            rows = []
            for section in sections:
                formula = "; ".join(filter(None, [section.formula, section.note]))
                first = ("\u2003" * section.depth + section.name, section.title, formula)
                for cells in self._cells(section) or [[""] * 8]:
                    rows.append((*first, cells[0].strip(), *cells[1:]))
                    first = ("", "", "")
            summary = f"{self._heading()}; {self._verdict()}"
            caption = summary if title == "Forward" else "dx is the derivative of the loss by x"
            faults = any(row[-1] for row in rows)
            head = (title, "layer", "formula", "array", *COLUMNS, *["not finite"] * faults)
            passes.append(table(head, [row[: len(head)] for row in rows], caption, left=5))
        return "".join(passes)


def walk(traces: list[Trace], back: bool = False) -> Iterator[Trace]:
    """Iterate over calls and those within them, outer before inner; with `back` in the order of the backward pass."""
    for trace in reversed(traces) if back else traces:
        yield trace
        yield from walk(trace.inner, back)


def formula_of(thing: Layer | Loss, way: int, *methods: str) -> str:
    """Return the formula of a layer or loss, forward (0) or backward (1); "" if a user overrides these methods."""
    describes = getattr(type(thing), "_describes", None)
    if describes is None or not describes("formula", *(methods or ("forward", "backward"))):
        return ""
    return thing.formula[way] if thing.formula else ""


def heading(section: Section, width: int) -> list[str]:
    """Return the first lines of a section, wrapped at `width`."""
    indent = "  " * section.depth
    first = indent + "  ".join(filter(None, [section.name, section.title]))
    formula = "; ".join(filter(None, [section.formula, section.note]))
    if len(first) + 4 + len(formula) <= width:
        return [f"{first}    {formula}".rstrip()]
    more = " " * (len(indent) + 4)
    equations = ", ".join(part.replace(" ", NO_BREAK) for part in section.formula.split(", "))  # lines end between them
    whole = "; ".join(filter(None, [equations, section.note]))
    lines = textwrap.wrap(whole, width, initial_indent=more, subsequent_indent=more, break_long_words=False)
    return [first, *(line.replace(NO_BREAK, " ") for line in lines)]


def aligned(rows: list[list[str]]) -> list[str]:
    """Format a header and rows of cells as lines: two columns of words, then numbers aligned by their points."""
    columns = list(zip(*rows, strict=True))
    padded_columns = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns[:2]]
    for column in columns[2:]:
        after = max((len(cell) - cell.index(".") for cell in column if "." in cell), default=0)
        padded = [cell + " " * (after - len(cell) + cell.find(".") if "." in cell else after) for cell in column[1:]]
        width = max(len(column[0]), *map(len, padded))
        padded_columns.append([f"{column[0]:>{width}}", *(f"{cell:>{width}}" for cell in padded)])
    return ["  ".join(cells) for cells in zip(*padded_columns, strict=True)]


def number(value: float) -> str:
    """Format with three significant digits, with four from 1,000 to 9,999."""
    if value == 0 or not math.isfinite(value):
        return f"{abs(value) if value == 0 else value:g}"
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}" if -1 <= places <= 5 else f"{value:.2e}"


def share(value: float) -> str:
    """Format a fraction in percent; "" for 0 or NaN."""
    if not value > 0:
        return ""
    return "<1%" if value < 0.005 else ">99%" if 0.995 <= value < 1 else f"{value:.0%}"
