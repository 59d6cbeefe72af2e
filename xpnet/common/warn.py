"""Warnings that point at the user's line."""

import sys
import warnings

SKIPPED = "xpnet", "numba", "sklearn", "joblib"  # packages whose frames are skipped


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called into the package, directly or through scikit-learn's tools.

    Filters see the xpnet module that warns, so `warnings.filterwarnings("ignore", module="xpnet")` silences them all.
    """
    frame = sys._getframe(1)
    module = frame.f_globals["__name__"]
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in SKIPPED:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)
