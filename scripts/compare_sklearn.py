"""xpnet's estimators beside scikit-learn's own: scores from 5-fold cross-validation, and the time that fitting takes.

    scripts/compare_sklearn.py                       all data sets
    scripts/compare_sklearn.py wine diabetes --json figures.json

Both are fitted to the same folds with the same settings, by turns, in one process; xpnet once before, so that nothing
is compiled while the clock runs. A time is the median over the folds of `--repeats` rounds, of `fit` alone, the scaling
left out; the last column is the ratio of the two.
"""

import argparse
import json
import platform
import sys
import time
import warnings

import numpy as np
import sklearn
from sklearn import neural_network as theirs
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

import xpnet as xn
from xpnet import estimators as ours


def generated() -> tuple[np.ndarray, np.ndarray]:
    """20,000 rows of 20 features, 4 classes."""
    x, y = make_classification(20_000, 20, n_informative=10, n_classes=4, random_state=0)
    return x, y


DATA = {
    "digits": lambda: load_digits(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "wine": lambda: load_wine(return_X_y=True),
    "diabetes": lambda: load_diabetes(return_X_y=True),
    "generated": generated,
}
SETTINGS = {"generated": {"max_iter": 30}}  # others: the defaults, which are scikit-learn's
FOLDS = 5


def main() -> None:
    """Compare, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"data sets, of {', '.join(DATA)}; all by default")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over the folds")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if unknown := set(options.data) - set(DATA):
        parser.error(f"no data set {', '.join(map(repr, unknown))}; there are {', '.join(DATA)}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = [compare(name, options.repeats) for name in options.data or DATA]
    where = versions()
    print(", ".join(f"{name} {version}" for name, version in where.items()))
    print()
    print(table(rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": where, "results": rows}, file, indent=2)


def compare(name: str, repeats: int) -> dict[str, object]:
    """Scores and times of both on one data set."""
    x, y = DATA[name]()
    regression = name == "diabetes"
    if regression:
        y = (y - y.mean()) / y.std()
    folds = (KFold if regression else StratifiedKFold)(FOLDS, shuffle=True, random_state=0)
    kind = "MLPRegressor" if regression else "MLPClassifier"
    makers = {"scikit-learn": getattr(theirs, kind), "xpnet": getattr(ours, kind)}
    scores: dict[str, list[float]] = {who: [] for who in makers}
    times: dict[str, list[float]] = {who: [] for who in makers}
    epochs: dict[str, list[int]] = {who: [] for who in makers}
    for turn in range(repeats):
        for fold, (train, test) in enumerate(folds.split(x, y)):
            scaler = StandardScaler().fit(x[train])
            inputs, held_out = scaler.transform(x[train]), scaler.transform(x[test])
            if turn == fold == 0:
                ours_once = makers["xpnet"](max_iter=2, random_state=0)
                ours_once.fit(inputs, y[train])
            order = list(makers) if (turn + fold) % 2 else list(makers)[::-1]
            for who in order:
                model = makers[who](random_state=fold, **SETTINGS.get(name, {}))
                began = time.perf_counter()
                model.fit(inputs, y[train])
                times[who].append(time.perf_counter() - began)
                if turn == 0:
                    scores[who].append(float(model.score(held_out, y[test])))
                    epochs[who].append(model.n_iter_)
    return {
        "data": name,
        "rows": x.shape[0],
        "features": x.shape[1],
        "measure": "R²" if regression else "accuracy",
        "scores": {who: float(np.mean(values)) for who, values in scores.items()},
        "epochs": {who: float(np.mean(values)) for who, values in epochs.items()},
        "seconds": {who: float(np.median(values)) for who, values in times.items()},
        "time": float(np.median(times["xpnet"]) / np.median(times["scikit-learn"])),
    }


def table(rows: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| data | rows × features | score: scikit-learn | xpnet | fit: scikit-learn | xpnet | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score, seconds = row["scores"], row["seconds"]
        lines.append(
            f"| {row['data']} | {row['rows']:,} × {row['features']} | {row['measure']} {score['scikit-learn']:.4f} | "
            f"{score['xpnet']:.4f} | {seconds['scikit-learn'] * 1e3:.0f} ms | {seconds['xpnet'] * 1e3:.0f} ms | "
            f"{row['time']:.2f} |"
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """What it ran on."""
    found = {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "xpnet": xn.__version__,
    }
    if "numba" in sys.modules:
        found["Numba"] = sys.modules["numba"].__version__
    return found


if __name__ == "__main__":
    main()
