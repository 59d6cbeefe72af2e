"""Support code of the tests: tables of cases, networks with stored files, CuPy on the host."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HANG = 600.0  # seconds after which a test gives up waiting; no result depends on it
