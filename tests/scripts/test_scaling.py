"""The model of several processes' step finds the latency and bandwidth that its measurements were made with."""

import pytest

from support import ROOT

pytestmark = pytest.mark.numpy_only


def test_latency_and_bandwidth_are_found_from_sums_over_two_processes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import scaling

    times = {size: scaling.sum_of(4 * size, 2, 3e-6, 5e9) for size in scaling.SIZES}
    assert scaling.fitted(times) == pytest.approx((3e-6, 5e9))
    assert scaling.sum_of(8, 4, 1.0, 2.0) == 4.0 + 2 * 0.75 * 4.0
