"""scikit-learn's MLPClassifier and MLPRegressor with what they lack, on the arrays you have.

networks.py     the network for an estimator's parameters, its start, its first layer for sparse X
losses.py       half squared error, half Poisson deviance
labels.py       class labels as rows of 0 and 1, and back
stochastic.py   epochs of batches: the optimizers, and scikit-learn's rules for when to stop
lbfgs.py        the whole batch at once, by SciPy's L-BFGS
convert.py      weights to and from scikit-learn's own, ONNX files
base.py         what the two estimators share
classifier.py   regressor.py
"""

try:
    import sklearn  # noqa: F401  # whether it is there
except ImportError as error:
    raise ImportError("xpnet.estimators needs scikit-learn: pip install scikit-learn threadpoolctl") from error

from .classifier import MLPClassifier
from .regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
