"""The hooks that a training run calls."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..network import Sequential
    from ..run import Run


class Callback:
    """Five hooks that do nothing: write those you need. Each is given the run, an `xpnet.run.Run`.

    It has `net` as trained so far, `epoch`, `step` and `history`; `run.history.record({"mine": 1.0})` adds a measure.

    Setting `run.stop = True` ends the training after the current epoch; `run.optimizer.learning_rate` may be set, and
    `run.x`, `run.y` and `run.loss` are what it trains on.

    One that remembers something from hook to hook names it in `memory`, for checkpoints: attributes that hold numbers,
    strings, None, arrays, or lists, tuples and dicts by name of these. A resumed run calls `train_begin` and then gives
    them back, as it does the optimizer's settings; in the middle of an epoch it goes on with the next step, without a
    second `epoch_begin`.
    """

    memory: tuple[str, ...] = ()

    def check_memory(self, memory: Mapping[str, Any], net: "Sequential") -> None:
        """Raise ValueError for what cannot be its memory, as a file may have it; `net` is the network beside it."""

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
