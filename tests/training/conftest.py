import pytest

from support.checkpoints import D, K, N


@pytest.fixture
def data(rng):
    return rng.normal(size=(N, D)), rng.integers(K, size=N)
