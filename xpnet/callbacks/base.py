"""The hooks that a training run calls."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..run import Run


class Callback:
    """Five hooks that do nothing: write those you need. Each is given the run, an `xpnet.run.Run`.

    It has `net` as trained so far, `epoch`, `step` and `history`; `run.history.record({"mine": 1.0})` adds a measure.

    Setting `run.stop = True` ends the training after the current epoch; `run.optimizer.learning_rate` may be set, and
    `run.x`, `run.y` and `run.loss` are what it trains on. One that remembers something from epoch to epoch names it in
    `memory`, for checkpoints: attributes that hold numbers, strings, None, lists of these, arrays, or dicts of arrays
    by name. They are given back after `train_begin`, as is the learning rate.
    """

    memory: tuple[str, ...] = ()

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
