"""Layers that give x another shape, order or scale."""

import numpy as np
import pytest

import xpnet as xn


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2)], ids=["C order", "batch contiguous"])
@pytest.mark.parametrize(("layer", "reference"), [
    (xn.Flatten(), lambda x: x.reshape(4, 12)),
    (xn.Reshape(4, -1), lambda x: x.reshape(4, 4, 3)),
    (xn.Reshape(12), lambda x: x.reshape(4, 12)),
    (xn.Transpose(3, 1, 2), lambda x: x.transpose(0, 3, 1, 2)),
    (xn.Transpose(2, 0, 1), lambda x: x.transpose(0, 3, 1, 2)),
    (xn.Rescale(0.5, -1.0), lambda x: 0.5 * x - 1.0),
], ids=lambda value: repr(value) if isinstance(value, xn.Layer) else "")  # fmt: skip
def test_entries_go_where_they_belong_and_back(lib, layer, reference, order):
    x = np.arange(48.0).reshape(4, 2, 3, 2) if order[0] == 0 else np.arange(48.0).reshape(2, 3, 2, 4).transpose(order)
    expected = reference(x)
    y, cache = layer.forward(lib.asarray(x))
    np.testing.assert_array_equal(lib.to_numpy(y), expected)
    assert tuple(y.shape) == layer.output_shape(x.shape)
    assert layer.output_shape(("N", *x.shape[1:])) == ("N", *expected.shape[1:])
    dx, _ = layer.backward(y, cache)
    np.testing.assert_array_equal(lib.to_numpy(dx), 0.5 * expected if isinstance(layer, xn.Rescale) else x)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("act", "message"), [
    (lambda: xn.Reshape(), r"^Reshape: expected sizes of at least 1, one of them perhaps -1, got \(\)$"),
    (lambda: xn.Reshape(-1, -1), r"one of them perhaps -1, got \(-1, -1\)$"),
    (lambda: xn.Reshape(0, 4), "^Reshape: each size must be a whole number of at least 1, got 0$"),
    (lambda: xn.Reshape(5, -1).forward(np.ones((2, 12))), "expected a multiple of 5 entries a row, got an x of shape"),
    (lambda: xn.Reshape(2, 4).output_shape(("N", 12)), r"expected 8 entries a row, got an x of shape \('N', 12\)"),
    (lambda: xn.Transpose(1, 3), r"^Transpose: expected each of the axes behind the batch once, .*, got \(1, 3\)$"),
    (lambda: xn.Transpose(2, 1).forward(np.ones((2, 3))), r"expected 2 axes behind the batch, got \(2, 3\)$"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.numpy_only
def test_lengths_that_are_not_known_stay_so():
    assert xn.Flatten().output_shape(("N", 3, None)) == ("N", None)
    assert xn.Reshape(2, -1).output_shape(("N", 3, None)) == ("N", 2, None)
    assert xn.Sequential(xn.Conv2d(1, 2, 3), xn.Flatten(), xn.Dense(8, 2)).output_shape((1, 4, 4)) == (2,)


def test_images_of_uint8_are_rescaled_as_their_floats_are(lib, rng):
    images, y = rng.integers(256, size=(6, 5, 5, 1), dtype=np.uint8), np.arange(6) % 2
    fits = []
    for x in (images, images.astype(np.float32)):
        net = xn.Sequential(
            xn.Rescale(1 / 255), xn.Transpose(3, 1, 2), xn.Conv2d(1, 2, 3, 2), xn.Flatten(), xn.Dense(8, 2)
        ).initialize(lib.backend)
        history = net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(), batch_size=3)
        fits.append((history["loss"], lib.to_numpy(net.predict(x)).tolist()))
    assert fits[0] == fits[1]
    y, _ = xn.Rescale(1 / 255).forward(lib.backend.asarray(images))
    assert y.dtype == lib.xp.float32
    np.testing.assert_allclose(lib.to_numpy(y), images / 255, rtol=1e-6)
