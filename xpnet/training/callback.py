"""The hooks that a training run calls."""

from collections.abc import Mapping
from typing import Any

from ..layers.placed import Placed
from .run import Run


class Callback:
    """The base class of callbacks: five hooks that do nothing; override those that you need.

    Each hook is given the run, an `xpnet.training.run.Run`. It has `net` as trained so far, `epoch`, `step` and
    `history`, and the data and loss of the training: `run.x`, `run.y` and `run.loss`.
    `run.history.record({"mine": 1.0})` adds a measure, `run.optimizer.learning_rate` may be set, and `run.stop = True`
    ends the training after the current epoch.

    For checkpoints, `memory` names the attributes that a callback carries from hook to hook: numbers, strings, None,
    arrays, or lists, tuples and dicts by name of these. A resumed run calls `train_begin` and then restores them, as it
    does the optimizer's settings. In the middle of an epoch it continues with the next step, without another
    `epoch_begin`.

    The host waits for a GPU before `epoch_end`, since the epoch's loss is then in the history. Reading `run.losses`
    (the losses of the last 1,000 steps), `run.finite` or numbers of `run.net` waits as well; the other hooks do not. In
    a full-batch run, with one step an epoch, a callback with `epoch_begin` or `epoch_end` therefore makes the host wait
    for every step. Without one, a GPU is given up to 32 epochs at a time, and the history that `step_end` sees is as
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
        """Called before the first step."""

    def epoch_begin(self, run: "Run") -> None:
        """Called before an epoch."""

    def step_end(self, run: "Run") -> None:
        """Called after a step, which may still be running on a GPU."""

    def epoch_end(self, run: "Run") -> None:
        """Called after an epoch, with its losses and metrics in `run.history`."""

    def train_end(self, run: "Run") -> None:
        """Called at the end of the run, also after Ctrl-C or an error."""
