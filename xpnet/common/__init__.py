"""Checks, settings and messages that every module may use; imports nothing else of the package."""
