"""What `torture.py` and its parts say when something did not hold."""


class BrokenPromise(Exception):  # noqa: N818  # what it is
    """Something did not hold."""


def must(holds: bool, what: str) -> None:
    """Go on, or end this part with what did not hold."""
    if not holds:
        raise BrokenPromise(what)
