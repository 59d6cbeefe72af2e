"""Diagnosis of a network as it trains: what goes wrong, in which layer, and the remedy."""

import copy
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..backends import Array, namespace
from ..common.checks import brief, integer
from ..common.settings import Configured
from ..common.terminal import Outlet, tell
from ..layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Tanh
from ..training.callback import Callback
from ..training.history import counted
from ..training.probe import Probe, Trace
from ..training.run import Run

ROWS = 256  # training rows per inspection, evenly spaced
SHUT = 0.01  # a unit is shut if its slope is below this fraction of the activation's steepest slope in every row
SHARE = 0.25  # report a layer if at least this fraction of its units is shut
FAST = 0.1  # report a step that moves a layer by more than this fraction of its size
SLOW = 1e-5  # report if the layer that moves most moves by less
FIRST = 10  # steps before fast updates are reported: many optimizers start with large ones
VANISHED, EXPLODED = 1e-4, 1e4  # a layer's gradient relative to the last layer's

ONCE = {"constant outputs", "vanishing gradient", "exploding gradient", "not finite"}  # reported for one layer only
STEEPEST = {ReLU: 1.0, LeakyReLU: 1.0, ELU: 1.0, Sigmoid: 0.25, Tanh: 1.0}
DEAD = "Lower the learning rate, put a BatchNorm before it, or use LeakyReLU"
SATURATED = (
    "Scale the inputs, put a BatchNorm before it, lower the learning rate, or draw smaller weights "
    '(initializer="glorot_uniform")'
)


class Finding(NamedTuple):
    """A fault: the epoch after which it was first seen, the layer, the kind, a description and a remedy."""

    epoch: int
    layer: str
    kind: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.layer}: {self.text}. {self.remedy}."


class Vitals(NamedTuple):
    """A layer at the last inspection: its fraction of shut units, the size of its gradient, and the size of the last
    step relative to the layer's own.
    """

    layer: str
    shut: float | None
    gradient: float | None
    ratio: float | None


class Doctor(Configured, Callback):
    """Inspects the network after the first epoch and every `every` epochs, and reports what is wrong with it:

    - dead units (ReLU, LeakyReLU, ELU) and saturated ones (Sigmoid, Tanh), whose slope is near 0 for every row;
    - a layer that the epoch's last step moves by far more or less than the usual thousandth of its size;
    - gradients that vanish or explode from the last layer to the first; outputs that are the same for every row;
    - the first layer whose output or gradient is not finite, and validation measures that are not.

    Each kind of fault is reported once for each layer, through `log` (None: not at all); if there was any, a table
    follows at the end, which `print(doctor)` shows as well. The attributes `findings` and `vitals` hold the same.

    An inspection takes up to 256 training rows through a copy of the network, in training mode. It changes nothing and
    costs about one step of a large network, some milliseconds for a small one. Its own failures become findings.

    Raises ValueError for an `every` below 1, TypeError for a `log` that cannot be called.

    >>> net = xn.Sequential(xn.Dense(2, 4), xn.ReLU(), xn.Dense(4, 1)).initialize(seed=0)
    >>> doctor = xn.Doctor(log=None)
    >>> x, y = [[1, 2], [3, 4]], [[1], [2]]
    >>> history = net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e-9), callbacks=[doctor])
    >>> any("learning rate" in str(finding) for finding in doctor.findings)
    True
    """

    def __init__(self, every: int = 1, log: Callable[[str], object] | None = print):
        self.every = integer("Doctor: every", every)
        if log is not None and not callable(log):
            raise TypeError(f"Doctor: log must be a function of a line of text, or None, got {brief(log)}")
        self.log = log
        self.findings: list[Finding] = []
        self.vitals: list[Vitals] = []
        self.before: dict[str, Array] = {}
        self.inspected_at, self.working = math.inf, True

    # --- hooks ----------------------------------------------------------------------------------------------------

    def train_begin(self, run: Run) -> None:
        self.findings, self.vitals, self.before = [], [], {}
        self.inspected_at = run.step
        self.working = True
        n = run.x.shape[0]
        stride = max(1, n // ROWS)
        self.rows = slice(0, stride * min(n, ROWS), stride)

    def epoch_begin(self, run: Run) -> None:
        if run.steps_per_epoch == 1:
            self._remember(run)

    def step_end(self, run: Run) -> None:
        steps = run.steps_per_epoch
        if steps is None or ((run.step + 1) % steps == 0 and steps > 1):
            self._remember(run)

    def epoch_end(self, run: Run) -> None:
        for name, values in run.history.items():
            if name.startswith("val_") and not math.isfinite(values[-1]):
                remedy = "Look at the validation data's scale, and lower the learning rate"
                self._find(run, f"history[{name!r}]", "not finite", f"it is {values[-1]}", remedy)
        if (run.epoch - 1) % self.every == 0:
            self._safely_inspect(run)

    def train_end(self, run: Run) -> None:
        self.before = {}
        if run.step > self.inspected_at:  # the run ended within an epoch
            self._safely_inspect(run)
        error = sys.exception()
        if getattr(error, "history", None) is run.history:  # the DivergenceError of this run
            text, _, remedy = str(error).removeprefix("fit: ").removesuffix(".").partition(". ")
            self._find(run, "the training", "divergence", text, remedy)
        self.inspected_at = math.inf
        if self.findings:
            self._say(str(self))

    # --- inspection -----------------------------------------------------------------------------------------------

    def _safely_inspect(self, run: Run) -> None:
        """Inspect; an error, which custom layers may raise, becomes a finding and does not end the training."""
        if self.working:
            try:
                self._inspect(run)
            except Exception as error:
                self.working = False
                text = f"it could not be inspected ({type(error).__name__}: {error})"
                self._find(run, "the network", "inspection failed", text, "The training goes on without inspections")

    def _remember(self, run: Run) -> None:
        """Keep the parameters before an epoch's last step."""
        if run.epoch % self.every == 0:
            self.before = run.net.params

    def _inspect(self, run: Run) -> None:
        self.inspected_at = run.step
        net, loss = copy.deepcopy((run.net, run.loss))  # a custom loss may have state
        x, *targets = run.data.rows(self.rows)
        probe = Probe(net)
        probe.forward(x, training=True)
        value, _ = probe.backward(loss, *targets)
        traces, host, after = probe.parts(), run.net.backend.to_numpy, run.net.params
        outputs = [host(trace.y).reshape(trace.y.shape[0], -1) for trace in traces]
        self.vitals = []
        for trace in traces:
            gradient = size_of(trace.gradients, matrices=True)
            vitals = self._shut(trace, host), gradient, self._ratio(trace, after)
            self.vitals.append(Vitals(f"{trace.name or 'network'}  {trace.layer!r}", *vitals))
        self.before = {}
        if fault := probe.first_fault(value):
            remedy = "Lower the learning rate, set the optimizer's clip_norm, or scale the inputs"
            self._find(run, str(fault[0] or "the loss"), "not finite", fault[1], remedy)
            return
        for trace, vital, output in list(zip(traces, self.vitals, outputs, strict=True))[:-1]:
            self._check_units(run, trace, vital.shut, output)  # not of the last layer: outputs may saturate
        constant = self._check_constant(run, traces, outputs)
        self._check_gradients(run, traces, constant)
        self._check_ratios(run, traces, constant)

    def _shut(self, trace: Trace, host: Callable[[Array], np.ndarray]) -> float | None:
        """Return the fraction of shut units of an activation; None for other layers."""
        steepest = next((top for kind, top in STEEPEST.items() if isinstance(trace.layer, kind)), None)
        if steepest is None:
            return None
        slope, _ = trace.layer.backward(namespace(trace.y).ones_like(trace.y), trace.cache)
        steep = np.abs(host(slope)).reshape(slope.shape[0], -1).max(axis=0)
        return float((steep / steepest < SHUT).mean())

    def _ratio(self, trace: Trace, after: dict[str, Array]) -> float | None:
        """Return how far the epoch's last step moved a layer, relative to its size; None if it has no parameters."""
        prefix = f"{trace.name}." if trace.name else ""
        before = {n: a for n, a in self.before.items() if trace.layer.trainable and n.startswith(prefix)}
        size, moved = size_of(before), size_of({n: after[n] - a for n, a in before.items()})
        return moved / size if size and moved is not None else None

    # --- checks ---------------------------------------------------------------------------------------------------

    def _check_units(self, run: Run, trace: Trace, share: float | None, output: np.ndarray) -> None:
        if share is None or len(output) < 2:
            return
        units = output.shape[1]
        if share >= SHARE:
            squashes = isinstance(trace.layer, (Sigmoid, Tanh))
            kind, remedy = ("saturated units", SATURATED) if squashes else ("dead units", DEAD)
            text = f"{round(share * units)} of {units} {kind}: no gradient passes them for any of {len(output)} rows"
            self._find(run, str(trace), kind, text, remedy)
        elif isinstance(trace.layer, (LeakyReLU, ELU)):
            negative = int((output < 0).all(axis=0).sum())
            if negative >= 2 * SHARE * units:
                text = f"{negative} of {units} units are negative for every one of {len(output)} rows"
                remedy = "The layer is linear there: put a BatchNorm before it, or lower the learning rate"
                self._find(run, str(trace), "one-sided units", text, remedy)

    def _check_constant(self, run: Run, traces: list[Trace], outputs: list[np.ndarray]) -> bool:
        constant = [len(o) > 1 and float(np.ptp(o, axis=0).max()) <= 1e-6 * float(np.abs(o).max()) for o in outputs]
        if constant[-1]:
            first = constant.index(True)
            text = f"its outputs are the same for all {len(outputs[0])} rows: what follows cannot tell them apart"
            remedy = "Look at the layers up to it (dead units? weights of 0?) and at the inputs' scale"
            self._find(run, str(traces[first]), "constant outputs", text, remedy)
        return constant[-1]

    def _check_gradients(self, run: Run, traces: list[Trace], constant: bool) -> None:
        known = [(t, v.gradient) for t, v in zip(traces, self.vitals, strict=True) if v.gradient is not None]
        if len(known) < 2 or not known[-1][1]:
            return
        end, last = known[-1]
        for trace, g in reversed(known[:-1]):
            ratio = g / last
            if ratio < VANISHED:
                text = f"the gradient vanishes: {g:.1e} here, {last:.1e} in {end}"
                remedy = (
                    "Put BatchNorms between the layers, use ReLU for Sigmoid and Tanh, "
                    'draw the weights with initializer="he_normal", or take fewer layers'
                )
                self._find(run, str(trace), "vanishing gradient", text, remedy)
                return
            if ratio > EXPLODED and not constant:  # constant outputs make the last layer's gradient small
                text = f"the gradient explodes: {g:.1e} here, {last:.1e} in {end}"
                remedy = "Put BatchNorms between the layers, draw smaller weights, or set the optimizer's clip_norm"
                self._find(run, str(trace), "exploding gradient", text, remedy)
                return

    def _check_ratios(self, run: Run, traces: list[Trace], constant: bool) -> None:
        known = [(t, v.ratio) for t, v in zip(traces, self.vitals, strict=True) if v.ratio is not None]
        if not known:
            return
        for trace, ratio in known:
            if ratio > FAST and run.step >= FIRST:
                text = f"one step moves it by {ratio:.1e} of its own size; about 1e-3 is usual"
                self._find(run, str(trace), "fast updates", text, "Lower the learning rate")
        trace, ratio = max(known, key=lambda each: each[1])
        if ratio < SLOW and run.epoch <= 1 and not constant:  # later it may have converged
            text = f"one step moves it by {ratio:.1e} of its own size, the other layers by less; about 1e-3 is usual"
            self._find(run, str(trace), "slow updates", text, "Raise the learning rate")

    # --- reports --------------------------------------------------------------------------------------------------

    def _find(self, run: Run, layer: str, kind: str, text: str, remedy: str) -> None:
        known = [finding.layer for finding in self.findings if finding.kind == kind]
        if layer not in known and not (known and kind in ONCE):
            self.findings.append(Finding(run.epoch, layer, kind, text, remedy))
            self._say(f"Doctor: {self.findings[-1]}")

    def _say(self, text: str) -> None:
        bars = sys.modules.get("tqdm")
        if self.log is print and bars is not None:
            bars.tqdm.write(text, file=Outlet(sys.stdout))  # above the progress bar
        elif self.log is print:
            tell(text, sys.stdout)
        elif self.log is not None:
            self.log(text)

    def __str__(self) -> str:
        lines = [f"Doctor: {counted(len(self.findings), 'finding') if self.findings else 'nothing found'}"]
        lines += [f"  epoch {finding.epoch:>3}  {finding.kind}: {finding.layer}" for finding in self.findings]
        if self.vitals:
            width = max(len(v.layer) for v in self.vitals)
            lines.append(f"  {'layer':<{width}}  {'shut units':>10}  {'gradient':>8}  {'step/size':>9}")
        for v in self.vitals:
            shut = "" if v.shut is None else f"{v.shut:.0%}"
            gradient, ratio = ("" if n is None else f"{n:.1e}" for n in (v.gradient, v.ratio))
            lines.append(f"  {v.layer:<{width}}  {shut:>10}  {gradient:>8}  {ratio:>9}".rstrip())
        return "\n".join(lines)


def size_of(arrays: dict[str, Array], matrices: bool = False) -> float | None:
    """Return the root mean square of all entries, or of those of matrices alone; None if there are no entries.

    Waits for the device.
    """
    chosen = [a for a in arrays.values() if (a.ndim > 1 or not matrices) and math.prod(a.shape)]
    if not chosen:
        return None
    xp = namespace(chosen[0])
    top = max(float(xp.max(xp.abs(a))) for a in chosen)
    if not 0 < top < math.inf:
        return top
    count = sum(math.prod(a.shape) for a in chosen)
    return top * math.sqrt(sum(float(xp.sum((a / top) ** 2)) for a in chosen) / count)  # squares cannot overflow
