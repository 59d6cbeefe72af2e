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
    "he_normal": 2 / IN,  # He et al. 2015, eq. 10
}
KURTOSIS = {"uniform": 9 / 5, "normal": 3}  # E[w⁴] / E[w²]²
SIGMAS = 5


@pytest.mark.parametrize("name", INITIALIZERS)
def test_draws_have_mean_zero_and_the_variance_of_the_sources_equation(name, rng):
    """The mean of n draws has the standard deviation √(var / n), that of their squares var √((kurtosis - 1) / n)."""
    w, variance = INITIALIZERS[name](rng, (IN, OUT)), VARIANCE[name]
    assert (w.shape, w.dtype) == ((IN, OUT), np.float64)
    spread = ((KURTOSIS[name.rpartition("_")[2]] - 1) / DRAWS) ** 0.5
    assert abs(w.mean()) < SIGMAS * (variance / DRAWS) ** 0.5
    assert np.square(w).mean() == pytest.approx(variance, rel=SIGMAS * spread)


@pytest.mark.parametrize("name", [name for name in INITIALIZERS if name.endswith("uniform")])
def test_uniform_draws_keep_within_their_bounds_and_nearly_reach_both(name, rng):
    """All n draws are below (1 - d) of a bound with probability (1 - d/2)ⁿ, here e⁻²⁰."""
    w, limit = INITIALIZERS[name](rng, (IN, OUT)), (3 * VARIANCE[name]) ** 0.5
    nearly = limit * (1 - 40 / DRAWS)
    assert nearly < w.max() <= limit
    assert nearly < -w.min() <= limit
