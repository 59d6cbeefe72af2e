"""Writing for people: a terminal that is closed or a pipe that nobody reads any more must not end a training."""

from typing import Any


class Outlet:
    """A text stream, or None for nobody's, that is silent from the first write on that fails."""

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

    def __eq__(self, other: object) -> bool:  # tqdm asks which of its bars are on a stream
        return bool(self.stream == getattr(other, "stream", other))

    def __hash__(self) -> int:
        return hash(self.stream)


def broken(stream: Any) -> bool:
    """Whether a stream can no longer be written to, as far as flushing it shows."""
    outlet = Outlet(stream)
    outlet.flush()
    return stream is not None and outlet.lost


def tell(text: str, stream: Any) -> None:
    """Print a line to a stream, at once; None is nobody's, as standard error is in a program without a terminal."""
    print(text, file=Outlet(stream), flush=True)
