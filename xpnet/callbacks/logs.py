"""A CSV log, and a time limit."""

import os
import time
from typing import Any

from ..common import checks
from ..common.checks import positive
from ..common.settings import Configured
from ..files.safetensors import Path, mode_to_keep, replacing
from ..training.callback import Callback
from ..training.run import Run

Row = dict[str, Any]


class CSVLog(Configured, Callback):
    """Writes each finished epoch to a CSV file at once: its number, and a column for each measure in the history.

    The file is overwritten or, with `append`, added to. A resumed run continues it and replaces the rows of epochs that
    it repeats. A measure that appears later gets a new column, empty above. Give this callback after those that record
    measures.

    `path` is the file's. Raises TypeError for what is no path; `fit` raises OSError where the file cannot be written.

    >>> log = xn.CSVLog("log.csv")
    >>> net = xn.Sequential(xn.Dense(2, 1)).initialize()
    >>> history = net.fit([[1, 2]], [[3]], loss=xn.MeanSquaredError(), optimizer=xn.SGD(), callbacks=[log])
    >>> import pathlib
    >>> pathlib.Path("log.csv").read_text().splitlines()[0]
    'epoch,loss'
    """

    def __init__(self, path: Path, append: bool = False):
        self.path, self.append = checks.path("CSVLog: path", path), checks.flag("CSVLog: append", append)

    def train_begin(self, run: Run) -> None:
        self.columns: list[str] = []
        self.has_written = False
        if run.step:  # resumed, perhaps within an epoch for which measures are already recorded
            self.lengths = {name: min(len(values), run.epoch) for name, values in run.history.items()}
        exists = mode_to_keep(self.path) is not None  # raises for a pipe, which would block on opening
        self._rewrite(self._read() if exists and (self.append or run.step) else [])  # raises before the first step

    def epoch_begin(self, run: Run) -> None:
        self.lengths = {name: len(values) for name, values in run.history.items()}

    def epoch_end(self, run: Run) -> None:
        import csv

        fresh = {name: values[-1] for name, values in run.history.items() if len(values) > self.lengths.get(name, 0)}
        row: Row = {"epoch": run.epoch} | fresh
        new = [name for name in row if name not in self.columns]
        exists = os.path.exists(self.path)  # it may have been deleted
        if new or not self.has_written or not exists:
            rows = self._read() if exists else []
            same_run = run.epoch > 1 or not self.append  # in a first epoch, the rows are those of another run
            while not self.has_written and same_run and rows and int(rows[-1]["epoch"]) >= run.epoch:
                rows.pop()
            self.columns += new
            self._rewrite([*rows, row])
            self.has_written = True
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _read(self) -> list[Row]:
        """Read the file's rows, and set `columns`."""
        import csv

        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or ())
            rows = list(reader)
        if self.columns and (self.columns[0] != "epoch" or not all(str(row["epoch"]).isdecimal() for row in rows)):
            raise ValueError(
                f"CSVLog: {self.path} is not a log of epochs: it has the columns {', '.join(self.columns)}. Give "
                "another path, or append=False to overwrite it"
            )
        return rows

    def _rewrite(self, rows: list[Row]) -> None:
        """Write all rows to a new file that replaces the old one: a crash leaves one of the two intact."""
        import csv
        import io

        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        if self.columns:
            writer.writeheader()
        writer.writerows(rows)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())


class TimeLimit(Configured, Callback):
    """Ends the training, as Ctrl-C does, after the first step that finishes `seconds` or more after the start.

    `history.interrupted` is then True, and the unfinished epoch is not in the history. Steps are timed on the host:
    those already queued on a GPU are still taken.

    Raises ValueError unless `seconds` is a finite number above 0.

    >>> xn.TimeLimit(60)
    TimeLimit(60.0)
    """

    def __init__(self, seconds: float):
        self.seconds = positive("TimeLimit: seconds", seconds)

    def train_begin(self, run: Run) -> None:
        self.end = time.monotonic() + self.seconds

    def step_end(self, run: Run) -> None:
        if time.monotonic() >= self.end and (run.steps is None or run.step < run.steps):
            run.history.interrupted = True

    def epoch_end(self, run: Run) -> None:
        self.step_end(run)  # validation takes time as well
