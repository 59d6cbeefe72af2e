"""A progress bar, or lines of progress if the output is not a terminal."""

import importlib.util
import os
import sys
import time
from typing import Any

from ..common.terminal import Outlet, broken, tell
from .callback import Callback
from .history import brief_number, counted
from .run import Run

BAR, TIMES = "{desc} |{bar}| ", "{elapsed}<{remaining}{postfix}"
FORMS = (  # bar formats of tqdm, the widest first
    BAR + TIMES + ", {n_fmt}/{total_fmt}, {rate_fmt}",
    BAR + TIMES + ", {n_fmt}/{total_fmt}",
    BAR + TIMES,
    "{desc} {bar:0}" + TIMES,  # a bar of no width: without a bar, tqdm does not trim lines to the terminal
)
SECONDS = 10  # between two lines


class Progress(Callback):
    """Shows a tqdm bar over all steps, with the last epoch's loss and metrics, in a terminal or a notebook.

    If standard error is a file, a pipe or a terminal of no width, it prints a line every ten seconds, and one for the
    first and the last epoch. A line says from where a run is resumed, and to which epoch the network goes back.
    In a notebook without ipywidgets, the bar is text on standard output: on standard error it would be red.
    """

    bar: Any = None  # for `train_end` after an error in `train_begin`
    line = ""

    def train_begin(self, run: Run) -> None:
        notebook = "ipykernel" in sys.modules
        widgets = notebook and importlib.util.find_spec("ipywidgets") is not None
        self.out = sys.stdout if notebook else sys.stderr
        self.began = self.next = self.epoch_began = time.monotonic()
        self.bar, self.line = None, ""
        if run.step:
            done = f"{counted(run.step, 'step')} and {counted(run.epoch, 'epoch')} of {run.epochs:,}"
            over = f"this run has ended, after {done}: nothing is left to train"
            tell(over if run.over else f"resumed after {done}", self.out)
        terminal = has_width(sys.stderr) and not broken(sys.stdout) and not broken(sys.stderr)  # tqdm flushes both
        if notebook or terminal:
            if widgets:
                from tqdm.notebook import tqdm
            else:
                from tqdm import tqdm
            self.bar = tqdm(
                total=run.steps, initial=run.step, unit="step", dynamic_ncols=True,
                leave=True if notebook else None,  # None: unless within another bar
                bar_format=FORMS[0], file=None if widgets else Outlet(self.out),
            )  # fmt: skip
            self._name(run, run.epoch + run.amid_epoch)  # the current epoch of a resumed run
            self._fit_in(run, last(run))

    def epoch_begin(self, run: Run) -> None:
        if self.bar is not None:
            self._name(run, run.epoch + 1)
        else:
            self.epoch_began = time.monotonic()

    def step_end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.update()
        elif time.monotonic() >= max(self.next, self.epoch_began + SECONDS):  # a long epoch
            of_all = "" if run.steps is None else f"/{run.steps:,}"
            self._offer(run, f"epoch {run.epoch + 1}/{run.epochs}, step {run.step:,}{of_all}")

    def epoch_end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.total = run.steps  # unknown until the end of the first epoch for some sources
            self._fit_in(run, last(run))
            return
        self._offer(run, f"epoch {run.epoch}/{run.epochs}")

    def train_end(self, run: Run) -> None:
        if self.bar is None:
            self._write()
            return
        if run.stop and not run.history.interrupted:  # stopped early: else the notebook shows an unfinished bar in red
            self.bar.total = self.bar.n
        self.bar.close()

    def tell_end(self, run: Run) -> None:
        """Print the epoch that the network went back to, if it did."""
        for back in run.history.back():
            tell(f"{'stopped after' if run.stop else 'after'} {counted(run.epoch, 'epoch')}, {back}", self.out)

    def _name(self, run: Run, epoch: int) -> None:
        self.bar.set_description_str(f"epoch {epoch}/{run.epochs}", refresh=False)

    def _fit_in(self, run: Run, measures: list[str]) -> None:
        """Show the measures; in a narrow terminal leave out counts and rate, then the bar, then the last measures."""
        columns, form, count = getattr(self.bar, "ncols", None), FORMS[0], len(measures)
        if isinstance(columns, int):  # None in a notebook or if disabled
            total, done = self.bar.total, self.bar.n - self.bar.initial
            longest = self.bar.format_interval(2 * (time.monotonic() - self.began) * total / max(done, 1))
            widest = {  # the longest values before the next epoch ends; tqdm's estimates of time vary
                "desc": f"epoch {run.epochs}/{run.epochs}", "elapsed": longest, "remaining": longest,
                "n_fmt": total, "total_fmt": total, "rate_fmt": "1000.00step/s",
            }  # fmt: skip
            choices = [(form, count) for count in range(len(measures), -1, -1) for form in FORMS]
            for form, count in choices:  # takes the first that fits, or the last
                postfix = "".join(f", {measure}" for measure in measures[:count])
                if len(form.format(bar="x", postfix=postfix, **widest)) < columns:
                    break
        self.bar.bar_format = form
        self.bar.set_postfix_str(", ".join(measures[:count]), refresh=False)

    def _offer(self, run: Run, place: str) -> None:
        """Write a line if `SECONDS` have passed since the last, else keep it for the end."""
        now = time.monotonic()
        self.line = f"{place}, {now - self.began:.1f} s" + ": " * bool(run.history) + ", ".join(last(run))
        if now >= self.next:
            self.next = now + SECONDS
            self._write()

    def _write(self) -> None:
        if self.line:
            tell(self.line, self.out)
            self.line = ""


def has_width(stream: Any) -> bool:
    """Whether the stream is a terminal with columns; a pseudo-terminal may have 0, and tqdm shows nothing there."""
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
    """Return the last epoch's measures as "name=value"."""
    return [f"{name}={brief_number(values[-1])}" for name, values in run.history.items()]
