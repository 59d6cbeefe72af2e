"""What the tests share: tables of cases, networks whose files are kept, CuPy on the host."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HANG = 600.0  # seconds, after which what is waited for hangs; no result depends on it
