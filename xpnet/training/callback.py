"""The hooks that a training run calls."""

from collections.abc import Mapping
from typing import Any

from ..layers.placed import Placed
from .run import Run


class Callback:
    """Five hooks that do nothing: write those you need. Each is given the run, an `xpnet.training.run.Run`.

    It has `net` as trained so far, `epoch`, `step` and `history`; `run.history.record({"mine": 1.0})` adds a measure.

    Setting `run.stop = True` ends the training after the current epoch; `run.optimizer.learning_rate` may be set, and
    `run.x`, `run.y` and `run.loss` are what it trains on.

    One that remembers something from hook to hook names it in `memory`, for checkpoints: attributes that hold numbers,
    strings, None, arrays, or lists, tuples and dicts by name of these. A resumed run calls `train_begin` and then gives
    them back, as it does the optimizer's settings; in the middle of an epoch it goes on with the next step, without a
    second `epoch_begin`.

    Before `epoch_end` the host waits for a GPU, since the epoch's loss is in the history then; `run.losses`,
    the losses of its last 1,000 steps, `run.finite` and numbers taken from `run.net` wait as well, the other hooks do
    not. In a full-batch run, of one step an epoch, a callback with `epoch_begin` or `epoch_end` so has each step waited
    for. Where there is none, a GPU is given up to 32 epochs at a time, and what `step_end` sees of the history is that
    far behind.

    >>> class Print(xn.Callback):
    ...     def epoch_end(self, run):
    ...         print("epoch", run.epoch, "after", run.step, "steps")
    >>> net = xn.Sequential(xn.Dense(2, 1)).initialize()
    >>> history = net.fit([[1, 2]], [[3]], loss=xn.MeanSquaredError(), optimizer=xn.SGD(), callbacks=[Print()])
    epoch 1 after 1 steps
    """

    memory: tuple[str, ...] = ()

    def check_memory(self, memory: Mapping[str, Any], net: Placed) -> None:
        """Raise ValueError for a `memory` from a checkpoint that it cannot have; `net` is the checkpoint's network."""

    def train_begin(self, run: "Run") -> None:
        """Before the first step."""

    def epoch_begin(self, run: "Run") -> None:
        """Before an epoch."""

    def step_end(self, run: "Run") -> None:
        """After a step; on a GPU it may still be running."""

    def epoch_end(self, run: "Run") -> None:
        """After an epoch, its losses and metrics in `run.history`."""

    def train_end(self, run: "Run") -> None:
        """At the end, also after Ctrl-C or an error."""
