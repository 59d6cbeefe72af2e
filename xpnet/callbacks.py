"""What goes on beside the training: its history, its progress bar, and the hooks for one's own."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Run


class Callback:
    """Five hooks that do nothing. Each is given the run: `net` as trained so far, `epoch`, `step`, `history`, `stop`.

    Setting `run.stop = True` ends the training after the current epoch. One that remembers something from epoch to
    epoch names it in `memory`, for checkpoints: attributes that hold numbers, strings, None, lists of these, arrays, or
    dicts of arrays by name.
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


class History(dict[str, list[float]]):
    """One list per measure, one number per finished epoch: `history["loss"]`, `history["val_accuracy"]`, ...

    Also `steps` (of training), `seconds` (in them, validation and callbacks left out), `interrupted` (by Ctrl-C), and
    `slots`, what the optimizer remembers at the end: `fit(..., slots=history.slots)` trains on with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.seconds = 0.0
        self.interrupted = False
        self.slots: dict[str, Any] | None = None

    def record(self, measures: dict[str, float]) -> None:
        for name, value in measures.items():
            self.setdefault(name, []).append(value)


class Progress(Callback):
    """A progress bar over all steps, with the last epoch's loss and metrics: tqdm's, in a terminal or a notebook."""

    def train_begin(self, run: "Run") -> None:
        from tqdm.auto import tqdm

        self.bar: Any = tqdm(total=run.epochs * run.steps_per_epoch, initial=run.step, unit="step", dynamic_ncols=True)

    def epoch_begin(self, run: "Run") -> None:
        self.bar.set_description_str(f"epoch {run.epoch + 1}/{run.epochs}", refresh=False)

    def step_end(self, run: "Run") -> None:
        self.bar.update()

    def epoch_end(self, run: "Run") -> None:
        self.bar.set_postfix({name: f"{values[-1]:.4f}" for name, values in run.history.items()}, refresh=False)

    def train_end(self, run: "Run") -> None:
        self.bar.close()
