"""Dropout's mask."""

import math

import numpy as np

import xpnet as xn
from support.cases import ready


def test_dropouts_mask_is_a_function_of_its_key_alone(lib):
    layer, shape = ready(xn.Dropout(0.3), lib), (400, 250)
    ones = lib.asarray(np.ones(shape), "float64")
    mask, cache = layer.forward(ones, training=True)
    mask = lib.to_numpy(mask)
    assert layer.forward(ones)[0] is ones
    np.testing.assert_array_equal(lib.to_numpy(layer.forward(ones, training=True)[0]), mask)
    host, _ = ready(xn.Dropout(0.3)).forward(np.ones(shape), training=True)
    np.testing.assert_array_equal(mask, host)
    assert set(np.unique(mask)) == {0.0, 1 / 0.7}
    sigma = math.sqrt(0.3 * 0.7 / mask.size)
    assert abs((mask == 0).mean() - 0.3) < 5 * sigma
    layer.assign_state(layer.next_state(cache))
    after = lib.to_numpy(layer.forward(ones, training=True)[0])
    both = ((mask == 0) & (after == 0)).mean()  # independent masks share 0.3²
    assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / mask.size)


MASK = """
    1111011111
    0100010110
    0011111110
    1011000111
    1101001010
    1010111011
"""


def test_dropouts_mask_has_the_same_bits_in_every_version(lib):
    """A run that is resumed drops what it would have dropped: the hash, its key and its order are part of a file."""
    layer = ready(xn.Dropout(0.4), lib)
    layer.assign_state({"key": lib.asarray(np.array([123456789, 7], dtype=np.int32))})
    y, _ = layer.forward(lib.asarray(np.ones((6, 10))), training=True)
    kept = ["".join(map(str, row)) for row in (lib.to_numpy(y) > 0).astype(int)]
    assert kept == MASK.split()
