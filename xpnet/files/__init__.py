"""Files: networks and training runs, and the formats of PyTorch and ONNX."""

import importlib
from typing import Any

__all__ = ["load_torch", "save_torch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:  # imported on first use: torch.py imports networks, which import this folder
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".torch", __name__), name)


def __dir__() -> list[str]:
    return __all__
