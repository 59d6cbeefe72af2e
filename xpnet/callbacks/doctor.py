"""What goes wrong inside a network as it trains, in plain words, with the layer and the remedy."""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..backends import Array, namespace
from ..common.checks import brief, integer
from ..common.settings import Configured
from ..common.terminal import Outlet, tell
from ..layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Tanh
from ..ops import all_finite
from ..training import probe
from ..training.callback import Callback
from ..training.history import counted

if TYPE_CHECKING:
    from ..training.run import Run

ROWS = 256  # that a look takes, spread evenly over the training data
SHUT = 0.01  # of an activation's steepest slope: a unit less steep than that for every row lets no gradient through
SHARE = 0.25  # of a layer's units, from which on it is worth a word
FAST = 0.1  # of a layer's own size, moved by in one step
SLOW = 1e-5  # the same, of the layer that moves most
FIRST = 10  # steps, which many an optimizer takes larger than all others
VANISHED, EXPLODED = 1e-4, 1e4  # a layer's gradient, as a multiple of the last layer's

ONCE = {
    "constant outputs",
    "vanishing gradient",
    "exploding gradient",
    "not finite",
}  # what spreads from layer to layer
STEEPEST = {ReLU: 1.0, LeakyReLU: 1.0, ELU: 1.0, Sigmoid: 0.25, Tanh: 1.0}
DEAD = "Lower the learning rate, put a BatchNorm before it, or use LeakyReLU"
SATURATED = (
    "Scale the inputs, put a BatchNorm before it, lower the learning rate, or draw smaller weights "
    '(initializer="glorot_uniform")'
)


class Finding(NamedTuple):
    """One thing that is wrong: after which epoch it was first seen, where, what, and what may mend it."""

    epoch: int
    layer: str
    kind: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.layer}: {self.text}. {self.remedy}."


class Vitals(NamedTuple):
    """One layer at the last look: the share of units that are shut, its gradient, and how far a step moved it."""

    layer: str
    shut: float | None
    gradient: float | None
    ratio: float | None


class Doctor(Configured, Callback):
    """Look inside the network after the first epoch and every `every` epochs, and say what is wrong with it.

    It says so once for each layer and kind of fault, through `log` (None: not at all), and where there was any it
    gives a table at the end, which `print(doctor)` shows too. `findings` and `vitals`, layer by layer, can be read:

    - dead units (ReLU, LeakyReLU, ELU) and saturated ones (Sigmoid, Tanh): no slope to speak of for any row;
    - a layer that one step (an epoch's last) moves by far more or less of its own size than the usual thousandth;
    - gradients that vanish or explode from the last layer to the first; outputs that are the same for every row;
    - the first layer whose output or gradient is not finite, and validation measures that are not.

    It looks at up to 256 rows of the training data, as training sees them, in a copy: it changes nothing, and costs
    about a step of a large network, of a small one some milliseconds. What fails in it becomes a finding, not an error.
    """

    def __init__(self, every: int = 1, log: Callable[[str], object] | None = print):
        self.every = integer("Doctor: every", every)
        if log is not None and not callable(log):
            raise TypeError(f"Doctor: log must be a function of a line of text, or None, got {brief(log)}")
        self.log = log
        self.findings: list[Finding] = []
        self.vitals: list[Vitals] = []
        self.before: dict[str, Array] = {}
        self.looked_at, self.well = math.inf, True

    # --- hooks ----------------------------------------------------------------------------------------------------

    def train_begin(self, run: "Run") -> None:
        self.findings, self.vitals, self.before = [], [], {}
        self.looked_at = run.step
        self.well = True
        n = run.x.shape[0]
        stride = max(1, n // ROWS)
        self.rows = slice(0, stride * min(n, ROWS), stride)

    def epoch_begin(self, run: "Run") -> None:
        if run.steps_per_epoch == 1:
            self._remember(run)

    def step_end(self, run: "Run") -> None:
        if (run.step + 1) % run.steps_per_epoch == 0 and run.steps_per_epoch > 1:
            self._remember(run)

    def epoch_end(self, run: "Run") -> None:
        for name, values in run.history.items():
            if name.startswith("val_") and not math.isfinite(values[-1]):
                remedy = "Look at the validation data's scale, and lower the learning rate"
                self._find(run, f"history[{name!r}]", "not finite", f"it is {values[-1]}", remedy)
        if (run.epoch - 1) % self.every == 0:
            self._safely(self._look, run)

    def train_end(self, run: "Run") -> None:
        self.before = {}
        if run.step > self.looked_at:  # amid an epoch, or it blew up
            self._safely(self._look, run)
        error = sys.exception()
        if getattr(error, "history", None) is run.history:  # the DivergenceError that ends this run
            text, _, remedy = str(error).removeprefix("fit: ").removesuffix(".").partition(". ")
            self._find(run, "the training", "divergence", text, remedy)
        self.looked_at = math.inf
        if self.findings:
            self._say(str(self))

    # --- looking --------------------------------------------------------------------------------------------------

    def _safely(self, look: Callable[["Run"], None], run: "Run") -> None:
        """Training must not end for a fault in looking at it: a user's own layers may do anything."""
        if self.well:
            try:
                look(run)
            except Exception as error:
                self.well = False
                text = f"it cannot be looked at ({type(error).__name__}: {error})"
                self._find(run, "the network", "no look", text, "The training is not affected; the checks have ended")

    def _remember(self, run: "Run") -> None:
        """The parameters before an epoch's last step."""
        if run.epoch % self.every == 0:
            self.before = run.net.params

    def _look(self, run: "Run") -> None:
        self.looked_at = run.step
        net, loss = copy.deepcopy((run.net, run.loss))  # a user's own layers and losses may count, or draw numbers
        looks = probe.forward(net, run.x[self.rows, ...], training=True)
        value = probe.backward(net, looks, run.y[self.rows, ...], loss)
        ratios = self._ratios(run, looks)
        host = run.net.backend.to_numpy
        outputs = [host(look.output).reshape(look.output.shape[0], -1) for look in looks]
        slopes = [self._slope(look, host) for look in looks]
        gradients = [size_of(look.grads or {}, matrices=True) for look in looks]
        shut = [None if s is None else float((s < SHUT).mean()) for s in slopes]
        numbers = zip(looks, shut, gradients, ratios, strict=True)
        self.vitals = [Vitals(f"{look.name or 'network'}  {look.layer!r}", *rest) for look, *rest in numbers]
        if fault := first_fault(looks, value):
            remedy = "Lower the learning rate, set the optimizer's clip_norm, or scale the inputs"
            self._find(run, fault[0], "not finite", fault[1], remedy)
            return
        for look, output, share in zip(looks, outputs, shut, strict=True):
            self._check_units(run, look, output, share, last=look is looks[-1])
        constant = self._check_constant(run, looks, outputs)
        self._check_gradients(run, looks, gradients, constant)
        self._check_ratios(run, looks, ratios, constant)

    def _slope(self, look: probe.Look, host: Callable[[Array], np.ndarray]) -> np.ndarray | None:
        """Of each unit of an activation, the steepest slope over the rows, as a share of what it can be."""
        steepest = next((top for kind, top in STEEPEST.items() if isinstance(look.layer, kind)), None)
        if steepest is None:
            return None
        slope, _ = look.layer.backward(namespace(look.output).ones_like(look.output), look.cache)
        steep: np.ndarray = np.abs(host(slope)).reshape(slope.shape[0], -1).max(axis=0)
        return steep / steepest

    def _ratios(self, run: "Run", looks: list[probe.Look]) -> list[float | None]:
        """How far the epoch's last step moved each layer, in units of its own size."""
        before, after = self.before, run.net.params
        self.before = {}
        ratios: list[float | None] = []
        for look in looks:
            prefix = f"{look.name}." if look.name else ""
            names = [n for n in before if n.startswith(prefix)] if look.layer.trainable else []
            size = size_of({n: before[n] for n in names})
            moved = size_of({n: after[n] - before[n] for n in names})
            ratios.append(moved / size if size and moved is not None else None)
        return ratios

    # --- judging --------------------------------------------------------------------------------------------------

    def _check_units(self, run: "Run", look: probe.Look, output: np.ndarray, share: float | None, last: bool) -> None:
        if share is None or len(output) < 2 or last:  # the last layer's may be as sure as they like
            return
        units = output.shape[1]
        if share >= SHARE:
            squashes = isinstance(look.layer, (Sigmoid, Tanh))
            kind, remedy = ("saturated units", SATURATED) if squashes else ("dead units", DEAD)
            text = f"{round(share * units)} of {units} {kind}: no gradient passes them for any of {len(output)} rows"
            self._find(run, str(look), kind, text, remedy)
        elif isinstance(look.layer, (LeakyReLU, ELU)):
            negative = int((output < 0).all(axis=0).sum())
            if negative >= 2 * SHARE * units:
                text = f"{negative} of {units} units are negative for every one of {len(output)} rows"
                remedy = "There the layer bends nothing: put a BatchNorm before it, or lower the learning rate"
                self._find(run, str(look), "one-sided units", text, remedy)

    def _check_constant(self, run: "Run", looks: list[probe.Look], outputs: list[np.ndarray]) -> bool:
        constant = [len(o) > 1 and float(np.ptp(o, axis=0).max()) <= 1e-6 * float(np.abs(o).max()) for o in outputs]
        if constant[-1]:
            first = constant.index(True)
            text = f"its outputs are the same for all {len(outputs[0])} rows: what follows cannot tell them apart"
            remedy = "Look at the layers up to it (dead units? weights of 0?) and at the inputs' scale"
            self._find(run, str(looks[first]), "constant outputs", text, remedy)
        return constant[-1]

    def _check_gradients(
        self, run: "Run", looks: list[probe.Look], gradients: list[float | None], constant: bool
    ) -> None:
        known = [(look, g) for look, g in zip(looks, gradients, strict=True) if g is not None]
        if len(known) < 2 or not known[-1][1]:
            return
        end, last = known[-1]
        for look, g in reversed(known[:-1]):
            ratio = g / last
            if ratio < VANISHED:
                text = f"the gradient vanishes: {g:.1e} here, {last:.1e} in {end}"
                remedy = (
                    "Put BatchNorms between the layers, use ReLU for Sigmoid and Tanh, "
                    'draw the weights with initializer="he_normal", or take fewer layers'
                )
                self._find(run, str(look), "vanishing gradient", text, remedy)
                return
            if ratio > EXPLODED and not constant:  # else the last layer's is small: it has nothing to tell apart
                text = f"the gradient explodes: {g:.1e} here, {last:.1e} in {end}"
                remedy = "Put BatchNorms between the layers, draw smaller weights, or set the optimizer's clip_norm"
                self._find(run, str(look), "exploding gradient", text, remedy)
                return

    def _check_ratios(self, run: "Run", looks: list[probe.Look], ratios: list[float | None], constant: bool) -> None:
        known = [(look, ratio) for look, ratio in zip(looks, ratios, strict=True) if ratio is not None]
        if not known:
            return
        for look, ratio in known:
            if ratio > FAST and run.step >= FIRST:
                text = f"one step moves it by {ratio:.1e} of its own size; about 1e-3 is usual"
                self._find(run, str(look), "fast updates", text, "Lower the learning rate")
        look, ratio = max(known, key=lambda each: each[1])
        if ratio < SLOW and run.epoch <= 1 and not constant:  # later it may have been meant to come to rest
            text = f"one step moves it by {ratio:.1e} of its own size, the other layers by less; about 1e-3 is usual"
            self._find(run, str(look), "slow updates", text, "Raise the learning rate")

    # --- telling --------------------------------------------------------------------------------------------------

    def _find(self, run: "Run", layer: str, kind: str, text: str, remedy: str) -> None:
        known = [finding.layer for finding in self.findings if finding.kind == kind]
        if layer not in known and not (known and kind in ONCE):
            self.findings.append(Finding(run.epoch, layer, kind, text, remedy))
            self._say(f"Doctor: {self.findings[-1]}")

    def _say(self, text: str) -> None:
        bars = sys.modules.get("tqdm")
        if self.log is print and bars is not None:
            bars.tqdm.write(text, file=Outlet(sys.stdout))  # above the progress bar, not through it
        elif self.log is print:
            tell(text, sys.stdout)
        elif self.log is not None:
            self.log(text)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"Doctor: {counted(len(self.findings), 'finding') if self.findings else 'nothing found'}"
        for finding in self.findings:
            yield f"  epoch {finding.epoch:>3}  {finding.kind}: {finding.layer}"
        if self.vitals:
            width = max(len(v.layer) for v in self.vitals)
            yield f"  {'layer':<{width}}  {'shut units':>10}  {'gradient':>8}  {'step/size':>9}"
            for v in self.vitals:
                shut = "" if v.shut is None else f"{v.shut:.0%}"
                gradient, ratio = ("" if n is None else f"{n:.1e}" for n in (v.gradient, v.ratio))
                yield f"  {v.layer:<{width}}  {shut:>10}  {gradient:>8}  {ratio:>9}".rstrip()


def size_of(arrays: dict[str, Array], matrices: bool = False) -> float | None:
    """The root mean square over all entries, of matrices alone if wanted, None without any. Waits for the device."""
    chosen = [a for a in arrays.values() if (a.ndim > 1 or not matrices) and math.prod(a.shape)]
    if not chosen:
        return None
    xp = namespace(chosen[0])
    top = max(float(xp.max(xp.abs(a))) for a in chosen)
    if not 0 < top < math.inf:
        return top
    count = sum(math.prod(a.shape) for a in chosen)
    return top * math.sqrt(sum(float(xp.sum((a / top) ** 2)) for a in chosen) / count)  # squares cannot overflow


def first_fault(looks: list[probe.Look], value: Array) -> tuple[str, str] | None:
    """Where what is not finite first shows: the layer and what of it, in the order of the passes."""
    for look in looks:
        if not all_finite(look.output):
            return str(look), "its output is not finite"
    if not math.isfinite(float(value)):
        return "the loss", "it is not finite"
    for look in reversed(looks):
        if not all(all_finite(g) for g in (look.grads or {}).values()):
            return str(look), "its gradient is not finite"
    return None
