"""A log of the calls of the device, and of faults."""


class Log:
    """Names of launches and waits, sizes of transfers to the device in bytes, and faults in words."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.waits: list[str] = []
        self.transfers: list[int] = []
        self.faults: list[str] = []

    def clear(self) -> None:
        for each in vars(self).values():
            each.clear()


log = Log()
