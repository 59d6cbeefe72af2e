"""The progress of the training, for whoever is watching: a bar, or lines where a bar would fill a file."""

import sys
import time
from typing import TYPE_CHECKING, Any

from .base import Callback

if TYPE_CHECKING:
    from ..run import Run

BAR = "{desc} |{bar}| {elapsed}<{remaining}{postfix}"
TAILS = ", {n_fmt}/{total_fmt}, {rate_fmt}", ", {n_fmt}/{total_fmt}", ""  # the first that there is room for
SECONDS = 10  # between two lines


class Progress(Callback):
    """A bar over all steps, with the last epoch's loss and metrics: tqdm's, in a terminal or a notebook.

    Where standard error goes to a file or a pipe: a line for the first and the last epoch, and every ten seconds one.
    """

    def train_begin(self, run: "Run") -> None:
        self.began = time.monotonic()
        self.next, self.line = self.began, ""
        self.bar: Any = None
        from tqdm.auto import tqdm

        notebook = "ipykernel" in sys.modules
        if notebook or (sys.stderr is not None and sys.stderr.isatty()):
            total, done = run.epochs * run.steps_per_epoch, run.step  # a resumed run has some behind it
            stays = True if notebook else None  # None: but within another bar
            self.bar = tqdm(
                total=total, initial=done, unit="step", dynamic_ncols=True, leave=stays, bar_format=BAR + TAILS[0]
            )

    def epoch_begin(self, run: "Run") -> None:
        if self.bar is not None:
            self.bar.set_description_str(f"epoch {run.epoch + 1}/{run.epochs}", refresh=False)

    def step_end(self, run: "Run") -> None:
        if self.bar is not None:
            self.bar.update()

    def epoch_end(self, run: "Run") -> None:
        measures = {name: brief(values[-1]) for name, values in run.history.items()}
        if self.bar is not None:
            self.bar.set_postfix(measures, refresh=False)
            self._fit_in()
            return
        now = time.monotonic()
        shown = ", ".join(f"{name}={value}" for name, value in measures.items())
        self.line = f"epoch {run.epoch}/{run.epochs}, {now - self.began:.1f} s: {shown}"
        if now >= self.next:
            self.next = now + SECONDS
            self._write()

    def train_end(self, run: "Run") -> None:
        if self.bar is None:
            self._write()
            return
        if run.stop and not run.history.interrupted:  # stopped early, as a callback wanted: no fault to show in red
            self.bar.total = self.bar.n
        self.bar.close()

    def _fit_in(self) -> None:
        """Leave away what a narrow terminal would cut off behind the measures."""
        if isinstance(self.bar.ncols, int):
            room = self.bar.ncols - len(f"{self.bar.desc} |x| 00:00<00:00, {self.bar.postfix}.")
            count = len(f", {self.bar.total}/{self.bar.total}")
            needs = count + len(", 1000.00step/s"), count, room
            tail = next(tail for tail, need in zip(TAILS, needs, strict=True) if need <= room)
            self.bar.bar_format = BAR + tail

    def _write(self) -> None:
        if self.line:
            print(self.line, file=sys.stderr, flush=True)
            self.line = ""


def brief(value: float) -> str:
    """A measure in few characters, of the same number from epoch to epoch."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
