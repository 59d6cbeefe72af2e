"""Convolutions in tiles, by Winograd's sums, against those whose windows are gathered, and both against the formula."""

import numpy as np
import pytest

from xpnet.kernels.cpu import correlation, winograd
from xpnet.kernels.stages import Workspace

pytestmark = pytest.mark.numpy_only

CASES = {  # channels in and out, the images' sides, the batch, the padding, rows of outputs at a time and in a step
    "even": (3, 4, (6, 8), 32, (1, 1), 6, 1),
    "odd": (2, 3, (7, 5), 17, (1, 1), 7, 1),
    "no padding": (3, 2, (6, 7), 5, (0, 0), 4, 2),
    "wide padding": (2, 2, (3, 4), 20, (2, 2), 9, 1),
    "padding of one axis": (2, 2, (1, 5), 3, (2, 0), 9, 1),
    "one output": (1, 1, (3, 3), 1, (0, 0), 1, 1),
    "stretches of two": (2, 5, (9, 4), 16, (1, 1), 2, 2),
    "stretches of six": (2, 3, (9, 9), 8, (0, 2), 7, 3),
    "several groups": (16, 130, (4, 4), 3, (1, 1), 2, 1),
    "one channel at a time": (2000, 2, (2, 3), 2, (1, 1), 2, 1),
}


FORMS = "gathered", "tiles", pytest.param("tiles in registers", marks=pytest.mark.numba_only)


def form_of(name):
    if name == "tiles in registers":
        from xpnet.kernels.cpu.numba.winograd import Winograd

        return Winograd
    return {"gathered": correlation.Correlation, "tiles": winograd.Winograd}[name]


def windows(x, padding, p, q):
    """x (C, H, W, N) as (3, 3, C, P, Q, N): the inputs of the outputs at each tap."""
    x = np.pad(x, [(0, 0), *((wide, wide) for wide in padding), (0, 0)])
    return np.asarray([[x[:, i : i + p, j : j + q] for j in range(3)] for i in range(3)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_products_and_gradient(form, name, dtype):
    c, o, (h, w), n, padding, most, step = CASES[name]
    p, q = h + 2 * padding[0] - 2, w + 2 * padding[1] - 2
    rng = np.random.default_rng(0)
    x, weight, dz = (rng.standard_normal(shape) for shape in ((c, h, w, n), (o, c, 3, 3), (o, p, q, n)))
    seen = windows(x, padding, p, q)
    z, dweight = np.einsum("ocij,ijcpqn->opqn", weight, seen), np.einsum("opqn,ijcpqn->ocij", dz, seen)
    room = Workspace(np, np.dtype(dtype), None)
    for place in ("patches", "products", "padded", "half", "scratch", "total", "terms"):
        room(place, (2**20,)).fill(np.nan)  # nothing is read that was not written
    given, ours, gradient = x.astype(dtype), np.full((p, o, q, n), np.nan, dtype), np.empty_like(weight, dtype)
    kernel = form_of(form)(room, x.shape, (3, 3), padding, (o, p, q), most, step)
    assert kernel.count % step == 0

    for again in (2.0, 1.0):
        kernel.set_weight(again * weight)
        for rows, part in kernel.patches(given):
            kernel.multiply(part, ours[rows])
        for rows, part in kernel.patches(given):
            kernel.add(rows, part, again * dz.transpose(1, 0, 2, 3)[rows].astype(dtype))
        kernel.gradient(gradient)

    for result, expected, count in ((ours.transpose(1, 0, 2, 3), z, 9 * c), (gradient, dweight, p * q * n)):
        # sums of so many products of about 1 grow like the root of it, and each rounding is half eps of such a sum
        np.testing.assert_allclose(result, expected, rtol=0, atol=8 * count * np.finfo(dtype).eps)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", FORMS[1:])
def test_tiles_are_for_many_channels_of_whole_tiles(form, threads):
    form = form_of(form)
    many = form.least[threads - 1]
    assert form.does((3, 3), (1, 1), many, (1, 4, 6), threads)
    assert not form.does((3, 3), (1, 1), many - 1, (1, 4, 6), threads)
    assert not form.does((3, 3), (1, 1), many, (1, 3, 6), threads)
    assert not form.does((3, 3), (2, 1), many, (1, 4, 6), threads)
    assert not form.does((3, 1), (1, 1), many, (1, 4, 6), threads)
