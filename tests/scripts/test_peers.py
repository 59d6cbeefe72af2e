"""The contestants of the benchmark take the same steps on images and texts as xpnet does."""

import numpy as np
import pytest

import xpnet as xn
from support import ROOT


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture(params=["images", "texts"])
def case(request, scripts):
    from parts import cases

    return cases.cnn(3, 8, 2, 4) if request.param == "images" else cases.transformer(2, 6, 8, layers=1)


@pytest.mark.torch_only
def test_pytorch_takes_the_same_steps(case):
    from parts import peers

    expected = peers.XpNet(case, "float64").first_losses()
    for name in ["torch", *["torch-channels-last"] * (case.kind == "images")]:
        np.testing.assert_allclose(peers.PEERS[name].build(case, "float64").first_losses(), expected, rtol=1e-9)


@pytest.mark.jax_only
def test_jax_makes_the_same_of_a_batch(case, lib):
    from parts import peers

    net, (x, _) = case.net(dtype="float32"), case.data("float32")
    x = x[: case.batch]
    y = peers.jax_outputs(case.layers, "", {k: lib.asarray(a) for k, a in net.params.items()}, {}, {}, lib.asarray(x))
    lib.agrees(y, net(x), rtol=1e-5)


@pytest.mark.jax_only
def test_jax_takes_the_running_averages_in_inference(scripts, lib, rng):
    from parts import peers

    layers = xn.Dense(3, 4), xn.BatchNorm(4, eps=peers.EPS)
    net, x = xn.Sequential(*layers).initialize(seed=0), rng.normal(size=(5, 3)).astype("float32")
    net.set_state({"1.mean": [1, 2, 3, 4], "1.var": [4, 3, 2, 1]})
    params, state = ({k: lib.asarray(a) for k, a in arrays.items()} for arrays in (net.params, net.state))
    lib.agrees(peers.jax_outputs(layers, "", params, state, None, lib.asarray(x)), net(x), rtol=1e-5)


@pytest.mark.numpy_only
def test_a_case_counts_its_products_and_what_its_layers_make(scripts):
    from parts import cases

    n, t, d = 2, 6, 8
    text = cases.transformer(n, t, d, layers=1)
    block = 4 * d * d + 2 * t * d + 8 * d * d  # multiplications for each position
    assert text.multiplications == 3 * n * t * (block + d * cases.VOCABULARY)
    kept = 3 * d + 4 * t + d  # of attention
    made = 3 * d + kept + 2 * d + d + 2 * 4 * d + d + d + d  # up to its norm, its output and sum, the network's
    assert text.activations == n * t * (made + d + cases.VOCABULARY) - n * t * d

    image = cases.cnn(n, 8, 2, 4)
    first, second, dense = 64 * 9 * 2, 16 * 2 * 9 * 4, 16 * 10
    assert image.multiplications == n * (2 * first + 3 * (second + dense))
    assert image.activations == n * (64 + (2 * 64 + 16) * 2 + (2 * 16 + 4) * 4 + 10)
