"""A progress bar, or lines of progress where the output is no terminal."""

import os
import sys
import time
from typing import Any

from ..common.terminal import Outlet, broken, tell
from .callback import Callback
from .run import Run

BAR, TIMES = "{desc} |{bar}| ", "{elapsed}<{remaining}{postfix}"
FORMS = (  # the first that fits is taken
    BAR + TIMES + ", {n_fmt}/{total_fmt}, {rate_fmt}",
    BAR + TIMES + ", {n_fmt}/{total_fmt}",
    BAR + TIMES,
    "{desc} {bar:0}" + TIMES,  # a bar of no width: without any, tqdm keeps no line within the terminal
)
SECONDS = 10  # between lines


class Progress(Callback):
    """A tqdm bar over all steps, with the last epoch's loss and metrics, in a terminal or a notebook.

    If standard error is a file, a pipe or a terminal of no width: a line every ten seconds, and one for the first and
    the last epoch.
    """

    bar: Any = None  # for `train_end` after an error in `train_begin`
    line = ""

    def train_begin(self, run: Run) -> None:
        from tqdm.auto import tqdm

        self.began = self.next = time.monotonic()
        self.bar, self.line = None, ""
        notebook = "ipykernel" in sys.modules
        terminal = has_width(sys.stderr) and not broken(sys.stdout) and not broken(sys.stderr)  # tqdm flushes both
        if notebook or terminal:
            self.bar = tqdm(
                total=run.steps, initial=run.step, unit="step", dynamic_ncols=True,
                leave=True if notebook else None,  # None: unless within another bar
                bar_format=FORMS[0], file=None if notebook else Outlet(sys.stderr),
            )  # fmt: skip
            self._name(run, run.epoch + run.amid_epoch)  # the current epoch of a resumed run
            self._fit_in(run, last(run))

    def epoch_begin(self, run: Run) -> None:
        if self.bar is not None:
            self._name(run, run.epoch + 1)

    def step_end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.update()

    def epoch_end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.total = run.steps  # which an epoch of a source may have told
            self._fit_in(run, last(run))
            return
        now = time.monotonic()
        self.line = f"epoch {run.epoch}/{run.epochs}, {now - self.began:.1f} s: {', '.join(last(run))}"
        if now >= self.next:
            self.next = now + SECONDS
            self._write()

    def train_end(self, run: Run) -> None:
        if self.bar is None:
            self._write()
            return
        if run.stop and not run.history.interrupted:  # stopped early: not an error, to be shown in red
            self.bar.total = self.bar.n
        self.bar.close()

    def _name(self, run: Run, epoch: int) -> None:
        self.bar.set_description_str(f"epoch {epoch}/{run.epochs}", refresh=False)

    def _fit_in(self, run: Run, measures: list[str]) -> None:
        """Show the measures; in a narrow terminal leave out what follows them, then the bar, then the last of them."""
        columns, form, count = getattr(self.bar, "ncols", None), FORMS[0], len(measures)
        if isinstance(columns, int):  # None in a notebook or if disabled
            total, done = self.bar.total, self.bar.n - self.bar.initial
            longest = self.bar.format_interval(2 * (time.monotonic() - self.began) * total / max(done, 1))
            widest = {  # until the next epoch ends; tqdm's estimates of time vary
                "desc": f"epoch {run.epochs}/{run.epochs}", "elapsed": longest, "remaining": longest,
                "n_fmt": total, "total_fmt": total, "rate_fmt": "1000.00step/s",
            }  # fmt: skip
            choices = [(form, count) for count in range(len(measures), -1, -1) for form in FORMS]
            for form, count in choices:  # the last if none fits
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
    """Whether the stream is a terminal with columns; scripts may open one of 0, in which tqdm shows nothing."""
    try:
        if stream is None or not stream.isatty():
            return False
    except ValueError:  # closed
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # not a file of the operating system
        return True


def last(run: Run) -> list[str]:
    """The last epoch's measures."""
    return [f"{name}={brief(values[-1])}" for name, values in run.history.items()]


def brief(value: float) -> str:
    """A measure in few characters, as many from epoch to epoch."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
