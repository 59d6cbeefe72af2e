"""NumPy's matrix products in parts and in stacks."""

from types import SimpleNamespace

import numpy as np
import pytest

from support.kernels import SIZES
from xpnet.kernels.cpu import products, threads

pytestmark = pytest.mark.numpy_only


@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_a_products_parts_are_small_and_nearly_equal(m, k, n):
    size, longest = m * k * n, max(m, k, n)
    parts = products.longest_axis_slices(m, k, n)
    if not products.SMALL < size <= products.SPLIT_UP_TO:
        assert parts == ()
        return
    assert [i for part in parts for i in range(longest)[part]] == list(range(longest))
    lengths = [len(range(longest)[part]) for part in parts]
    assert max(lengths) * (size // longest) <= products.SMALL
    assert max(lengths) - min(lengths) < len(parts) == -(-longest // (products.SMALL // (size // longest)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", ["a", "b", ""])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (13, 30, 45), (21, 200, 70), (37, 128, 600), (9, 300, 3000)])
def test_a_product_in_stacks(m, k, n, turned, dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    expected, out = a.astype("float64") @ b.astype("float64"), np.full((m, n), np.nan, dtype)
    lying = [np.ascontiguousarray(x.T).T if name == turned else x for name, x in (("a", a), ("b", b))]
    assert products.in_stacks(*lying, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=0, atol=5 * (10 + k) * np.finfo(dtype).eps)


def test_stacks_are_for_one_thread_of_a_blas_with_kernels_for_them(kernels, monkeypatch):
    family = kernels()
    for architecture, count, expected in [("SkylakeX", 1, True), ("SkylakeX", 2, False), ("Haswell", 1, False)]:
        library = SimpleNamespace(architecture=architecture, num_threads=count)
        monkeypatch.setattr(threads, "blas", lambda library=library: [library])
        assert (family.product_in(1) is products.in_stacks) == expected
    assert family.product_in(2) is not products.in_stacks
    monkeypatch.setattr(threads, "blas", list)
    assert family.product_in(1) is family.product
