"""scikit-learn's MLPClassifier and MLPRegressor with what they lack, on any library's arrays.

networks.py     the network for an estimator's parameters, initial weights, a first layer for sparse X
labels.py       encoding of class labels as rows of 0 and 1
stochastic.py   training by minibatches: optimizers, and scikit-learn's stopping rules
lbfgs.py        full-batch training by SciPy's L-BFGS
convert.py      conversion to and from scikit-learn's estimators, and to ONNX files
base.py         the base class of the two estimators, in classifier.py and regressor.py, which has its losses
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("xpnet.estimators needs scikit-learn: pip install scikit-learn threadpoolctl") from error

from .classifier import MLPClassifier
from .regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]


def __dir__() -> list[str]:
    return __all__
