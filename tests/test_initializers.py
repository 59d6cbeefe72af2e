"""Initial weights have the distribution that their source's equation says."""

import numpy as np
import pytest

from xpnet.initializers import INITIALIZERS

pytestmark = pytest.mark.numpy_only

IN, OUT = 2000, 500  # unlike, so that neither stands for the other
DRAWS = IN * OUT
VARIANCE = {
    "fan_in_uniform": 1 / (3 * IN),  # of a uniform one within ±1/√in
    "glorot_uniform": 2 / (IN + OUT),  # Glorot & Bengio 2010, eq. 12
    "glorot_normal": 2 / (IN + OUT),
    "he_normal": 2 / IN,  # He et al. 2015, eq. 10
    "he_uniform": 2 / IN,
    "normal": 0.02**2,
}
CONVOLUTION = (OUT // 10, IN // 20, 10, 2)  # (out, in, *kernel): as many weights meet in an output as of (IN, OUT) do
KURTOSIS = {"uniform": 9 / 5, "normal": 3}  # E[w⁴] / E[w²]²
SIGMAS = 5


@pytest.mark.parametrize("shape", [(IN, OUT), CONVOLUTION], ids=["dense", "convolution"])
@pytest.mark.parametrize("name", VARIANCE)
def test_draws_have_mean_zero_and_the_variance_of_the_sources_equation(name, shape, rng):
    """The mean of n draws has the standard deviation √(var / n), that of their squares var √((kurtosis - 1) / n)."""
    w, variance = INITIALIZERS[name](rng, shape), VARIANCE[name]
    if shape is CONVOLUTION:  # OUT / 10 outputs of a kernel of 20: twice as many weights meet in an input
        variance *= (IN + OUT) / (IN + 2 * OUT) if name.startswith("glorot") else 1.0
    assert (w.shape, w.dtype) == (shape, np.float64)
    spread = ((KURTOSIS[name.rpartition("_")[2]] - 1) / w.size) ** 0.5
    assert abs(w.mean()) < SIGMAS * (variance / w.size) ** 0.5
    assert np.square(w).mean() == pytest.approx(variance, rel=SIGMAS * spread)


@pytest.mark.parametrize("name", [name for name in INITIALIZERS if name.endswith("uniform")])
def test_uniform_draws_keep_within_their_bounds_and_nearly_reach_both(name, rng):
    """All n draws are below (1 - d) of a bound with probability (1 - d/2)ⁿ, here e⁻²⁰."""
    w, limit = INITIALIZERS[name](rng, (IN, OUT)), (3 * VARIANCE[name]) ** 0.5
    nearly = limit * (1 - 40 / DRAWS)
    assert nearly < w.max() <= limit
    assert nearly < -w.min() <= limit


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (6, 2, 3, 3), (20, 2, 3)])
def test_orthogonal_matrices_are(rng, shape):
    w = INITIALIZERS["orthogonal"](rng, shape).reshape(shape[0], -1)
    small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(small, np.eye(min(w.shape)), rtol=0, atol=1e-14)


def test_every_initializer_has_a_row():
    assert {*VARIANCE, "orthogonal"} == {*INITIALIZERS}
