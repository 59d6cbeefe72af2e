"""The package's warnings, which name the user's line."""

import sys
import warnings

BETWEEN = "xpnet", "numba", "sklearn", "joblib"  # the packages whose frames may stand between it and the user's line


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the program that called into the package, directly or through scikit-learn's tools.

    The module that filters see is xpnet's own that warns, as with scikit-learn's warnings:
    `warnings.filterwarnings("ignore", module="xpnet")` silences all of them, wherever they were caused.
    """
    frame = sys._getframe(1)
    module = frame.f_globals["__name__"]
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in BETWEEN:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)
