"""Activations. Each is a function of x alone, with dx = dy · f'(x), or the Jacobian product for Softmax."""

import math
from typing import Any

from .. import ops
from ..backends import Array, floating, namespace
from ..common.checks import finite, flag
from .base import Layer


class Sigmoid(Layer):
    """forward: y = 1 / (1 + e⁻ˣ)        backward: dx = dy y (1 - y)

    >>> xn.Sigmoid().output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = 1 / (1 + e⁻ˣ)", "dx = dy y (1 - y)"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        y = ops.sigmoid(x)
        return y, (self, y.shape, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (y,) = self.saved(cache, dy)
        dx = 1.0 - y
        dx *= y
        dx *= dy
        return dx, {}


class Tanh(Layer):
    """forward: y = tanh x              backward: dx = dy (1 - y²)

    >>> xn.Tanh().output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = tanh x", "dx = dy (1 - y²)"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        y = floating(x, self).tanh(x)
        return y, (self, y.shape, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (y,) = self.saved(cache, dy)
        dx = 1.0 - y * y
        dx *= dy
        return dx, {}


class ReLU(Layer):
    """forward: y = max(x, 0)           backward: dx = dy where x >= 0, else 0, so that the derivative at 0 is 1

    >>> xn.ReLU().output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = max(x, 0)", "dx = dy where x >= 0, else 0"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        y = floating(x, self).maximum(x, 0.0)
        return y, (self, y.shape, x >= 0.0)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (positive,) = self.saved(cache, dy)
        return namespace(dy).where(positive, dy, 0.0), {}


class LeakyReLU(Layer):
    """forward: y = x where x >= 0, else α x        backward: dx = dy where x >= 0, else α dy

    Source: Maas, Hannun & Ng 2013, section 2 (there α = 0.01).

    `alpha` α is a finite number; raises ValueError for another.

    >>> xn.LeakyReLU(0.01).output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = x where x >= 0, else α x", "dx = dy where x >= 0, else α dy"

    def __init__(self, alpha: float = 0.2):
        self.alpha = finite("LeakyReLU: alpha", alpha)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        positive = x >= 0.0
        y = xp.where(positive, x, self.alpha * x)
        return y, (self, y.shape, positive)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (positive,) = self.saved(cache, dy)
        return namespace(dy).where(positive, dy, self.alpha * dy), {}


class ELU(Layer):
    """forward: y = x where x >= 0, else α (eˣ - 1)        backward: dx = dy where x >= 0, else dy α eˣ

    The exponential is taken of min(x, 0), so that it cannot overflow.
    Source: Clevert, Unterthiner & Hochreiter 2016, eq. 15.

    `alpha` α is a finite number; raises ValueError for another.

    >>> xn.ELU(alpha=1.0).output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = x where x >= 0, else α (eˣ - 1)", "dx = dy where x >= 0, else dy α eˣ"

    def __init__(self, alpha: float = 0.1):
        self.alpha = finite("ELU: alpha", alpha)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        y = xp.where(x >= 0.0, x, self.alpha * xp.expm1(xp.minimum(x, 0.0)))
        return y, (self, y.shape, x)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (x,) = self.saved(cache, dy)
        xp = namespace(x)
        return xp.where(x >= 0.0, dy, dy * (self.alpha * xp.exp(xp.minimum(x, 0.0)))), {}


class SiLU(Layer):
    """forward: y = x σ, σ = 1 / (1 + e⁻ˣ)        backward: dx = dy σ (1 + x (1 - σ)) = dy (σ + y (1 - σ))

    Also called swish. Source: Elfwing, Uchibe & Doya 2018, eqs. 5 and 7.

    >>> xn.SiLU().output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = x σ, σ = 1 / (1 + e⁻ˣ)", "dx = dy (σ + y (1 - σ))"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        floating(x, self)
        gate = ops.sigmoid(x)
        y = x * gate
        return y, (self, y.shape, y, gate)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        y, gate = self.saved(cache, dy)
        return dy * (gate + y * (1.0 - gate)), {}


ROOT, CUBIC = (2.0 / math.pi) ** 0.5, 0.044715  # of GELU's approximation


class GELU(Layer):
    """forward: y = x Φ(x)              backward: dx = dy (Φ(x) + x φ(x))

    Φ(x) = (1 + erf(x / √2)) / 2 is the normal distribution's probability of a value below x, and
    φ(x) = Φ'(x) = e^{-x²/2} / √(2π) its density.

    `approximate=True` has Φ(x) = (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³) and its derivative
    φ(x) = (1 - tanh² u) u' / 2 = 2 Φ(x) (1 - Φ(x)) u' instead: the form of GPT-2 and of PyTorch's `approximate="tanh"`.
    Its y differs by up to 4.7e-4. For powers, x is clipped to a range beyond which Φ is 0 or 1.
    Source: Hendrycks & Gimpel 2016, section 2.

    Raises ValueError for an `approximate` that is neither True nor False.

    >>> xn.GELU().output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = x Φ(x)", "dx = dy (Φ(x) + x φ(x))"

    def __init__(self, approximate: bool = False):
        self.approximate = flag("GELU: approximate", approximate)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        if self.approximate:
            c = ops.clip(x, -10.0, 10.0)
            below = 0.5 + 0.5 * xp.tanh(c * (ROOT + ROOT * CUBIC * (c * c)))
        else:
            below = 0.5 + 0.5 * ops.erf(x * 0.5**0.5)
        y = x * below
        return y, (self, y.shape, x, below)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, below = self.saved(cache, dy)
        if self.approximate:
            c = ops.clip(x, -10.0, 10.0)
            density = 2.0 * below * (1.0 - below) * (ROOT + 3.0 * ROOT * CUBIC * (c * c))
        else:
            c = ops.clip(x, -40.0, 40.0)
            density = (2.0 * math.pi) ** -0.5 * namespace(x).exp(-0.5 * (c * c))
        return dy * (below + x * density), {}


class Softplus(Layer):
    """forward: y = log(1 + eˣ) = max(x, 0) + log(1 + e^{-|x|})        backward: dx = dy / (1 + e⁻ˣ)

    A smooth ReLU. Source: Dugas et al. 2001, section 3.

    >>> xn.Softplus().output_shape(("N", 3))
    ('N', 3)
    """

    formula = "y = log(1 + eˣ)", "dx = dy / (1 + e⁻ˣ)"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        y = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))
        return y, (self, y.shape, x)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (x,) = self.saved(cache, dy)
        return dy * ops.sigmoid(x), {}


class Softmax(Layer):
    """Over the last axis, K classes.

    forward:   y_k  = e^{x_k} / Σ_j e^{x_j}
    backward:  dx_k = Σ_j dy_j y_j (δ_jk - y_k) = y_k (dy_k - Σ_j dy_j y_j)

    Instead of this layer before cross-entropy, use `SoftmaxCrossEntropy` on the logits, which is exact in the tails.

    >>> import numpy as np
    >>> xn.Softmax().forward(np.asarray([[0.0, 0.0]]))[0]
    array([[0.5, 0.5]])
    """

    formula = "y_k = e^{x_k} / Σ_j e^{x_j}", "dx_k = y_k (dy_k - Σ_j dy_j y_j)"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        y = ops.softmax(x)
        return y, (self, y.shape, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (y,) = self.saved(cache, dy)
        return y * (dy - namespace(y).sum(dy * y, axis=-1, keepdims=True)), {}
