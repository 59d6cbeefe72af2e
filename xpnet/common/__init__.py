"""Checks, settings and messages for all modules of the package."""
