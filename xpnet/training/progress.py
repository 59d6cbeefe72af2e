"""The progress of the training, for whoever is watching: a bar, or lines where a bar would fill a file."""

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from ..common.terminal import Outlet, broken, tell
from .callback import Callback

if TYPE_CHECKING:
    from .run import Run

BAR, TIMES = "{desc} |{bar}| ", "{elapsed}<{remaining}{postfix}"
FORMS = (  # the first that there is room for
    BAR + TIMES + ", {n_fmt}/{total_fmt}, {rate_fmt}",
    BAR + TIMES + ", {n_fmt}/{total_fmt}",
    BAR + TIMES,
    "{desc} {bar:0}" + TIMES,  # a bar of no width: without any, tqdm keeps no line within the terminal
)
SECONDS = 10  # between two lines


class Progress(Callback):
    """A bar over all steps, with the last epoch's loss and metrics: tqdm's, in a terminal or a notebook.

    Where standard error goes to a file, a pipe or a terminal of no width: a line for the first and the last epoch, and
    every ten seconds one.
    """

    bar: Any = None  # what `train_end` looks at, should `train_begin` have failed
    line = ""

    def train_begin(self, run: "Run") -> None:
        from tqdm.auto import tqdm

        self.began = self.next = time.monotonic()
        self.bar, self.line = None, ""
        notebook = "ipykernel" in sys.modules
        if notebook or (
            has_width(sys.stderr) and not broken(sys.stdout) and not broken(sys.stderr)
        ):  # tqdm flushes both
            total, done = run.epochs * run.steps_per_epoch, run.step  # a resumed run has some behind it
            stays = True if notebook else None  # None: but within another bar
            self.bar = tqdm(
                total=total, initial=done, unit="step", dynamic_ncols=True, leave=stays, bar_format=FORMS[0],
                file=None if notebook else Outlet(sys.stderr),
            )  # fmt: skip
            self._name(run, -(-run.step // run.steps_per_epoch))  # the epoch that it is in the middle of
            self._fit_in(run, last(run))

    def epoch_begin(self, run: "Run") -> None:
        if self.bar is not None:
            self._name(run, run.epoch + 1)

    def step_end(self, run: "Run") -> None:
        if self.bar is not None:
            self.bar.update()

    def epoch_end(self, run: "Run") -> None:
        if self.bar is not None:
            self._fit_in(run, last(run))
            return
        now = time.monotonic()
        self.line = f"epoch {run.epoch}/{run.epochs}, {now - self.began:.1f} s: {', '.join(last(run))}"
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

    def _name(self, run: "Run", epoch: int) -> None:
        self.bar.set_description_str(f"epoch {epoch}/{run.epochs}", refresh=False)

    def _fit_in(self, run: "Run", measures: list[str]) -> None:
        """Show the measures, and leave out what a narrow terminal would cut off: what is behind them, then the bar,
        then the last of them.
        """
        columns, form, count = getattr(self.bar, "ncols", None), FORMS[0], len(measures)
        if isinstance(columns, int):  # a notebook's has none, nor one that is switched off
            total, done = self.bar.total, self.bar.n - self.bar.initial
            whole = (time.monotonic() - self.began) * total / max(done, 1)
            widest = {  # until the next epoch's end
                "desc": f"epoch {run.epochs}/{run.epochs}",
                "elapsed": self.bar.format_interval(2 * whole),  # tqdm's estimates go up and down
                "remaining": self.bar.format_interval(2 * whole),
                "n_fmt": total,
                "total_fmt": total,
                "rate_fmt": "1000.00step/s",
            }
            choices = [(form, count) for count in range(len(measures), -1, -1) for form in FORMS]
            for form, count in choices:  # the last is taken where none fits
                postfix = "".join(f", {measure}" for measure in measures[:count])
                if len(form.format(bar="x", postfix=postfix, **widest)) < columns:
                    break
        self.bar.bar_format = form
        self.bar.set_postfix_str(", ".join(measures[:count]), refresh=False)

    def _write(self) -> None:
        if self.line:
            tell(self.line, sys.stderr)
            self.line = ""


def has_width(stream: Any) -> bool:
    """Whether it is a terminal, and not one of 0 columns, such as scripts open: tqdm shows nothing there."""
    try:
        if stream is None or not stream.isatty():
            return False
    except ValueError:  # it is closed
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # no file of the system's
        return True


def last(run: "Run") -> list[str]:
    """The last epoch's measures."""
    return [f"{name}={brief(values[-1])}" for name, values in run.history.items()]


def brief(value: float) -> str:
    """A measure in few characters, of the same number from epoch to epoch."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
