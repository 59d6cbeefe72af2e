"""Terminal output that never fails: a closed terminal or a broken pipe is ignored."""

from typing import Any


class Outlet:
    """Wraps a text stream, or None, and falls silent after the first write that fails."""

    def __init__(self, stream: Any):
        self.stream, self.lost = stream, stream is None

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *text: str) -> None:
        if self.lost:
            return
        try:
            getattr(self.stream, method)(*text)
        except UnicodeEncodeError:
            self._try(method, *(each.encode("ascii", "backslashreplace").decode() for each in text))
        except (OSError, ValueError):  # a broken pipe or a full disk; a closed file
            self.lost = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm compares the streams of its bars
        return bool(self.stream == getattr(other, "stream", other))

    def __hash__(self) -> int:
        return hash(self.stream)


def broken(stream: Any) -> bool:
    """Whether flushing the stream fails, so that it can no longer be written to."""
    outlet = Outlet(stream)
    outlet.flush()
    return stream is not None and outlet.lost


def tell(text: str, stream: Any) -> None:
    """Print a line to a stream and flush it; None, as `sys.stderr` is without a console, prints nothing."""
    print(text, file=Outlet(stream), flush=True)
