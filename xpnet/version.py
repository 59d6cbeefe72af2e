"""The version, which the package, its files and its build read here."""

__version__ = "0.2.0"
