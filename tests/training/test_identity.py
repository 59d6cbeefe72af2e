"""Whose run a folder's checkpoints are: what differs is listed, and other code of the same name is told apart."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import xpnet as xn
from support.checkpoints import Best, K, StopAt, StopError, arrays_of, assert_same, fit, network
from xpnet.training import checkpoints
from xpnet.training.identity import own_code


@pytest.mark.numpy_only
def test_what_differs_is_listed_and_refused(lib, data, tmp_path):
    x, y = data
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), epochs=1, optimizer=xn.Adam(lambda step: 0.01))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    net = network(lib, dtype="float64")
    before = arrays_of(lib, net)
    with pytest.raises(ValueError, match="is of another run, from which this one differs in") as error:
        fit(
            net,
            (x + 1e-9, y),
            checkpoint=xn.Checkpoint(tmp_path),
            resume=True,
            optimizer=xn.SGD(),
            batch_size=6,
            callbacks=[Best()],
            l2=0.5,
        )
    text = str(error.value)
    for name in (
        "dtype: 'float32' then, 'float64' now",
        "batch_size: 5 then, 6 now",
        "l2: 0.0 then, 0.5 now",
        "x: float32",
    ):
        assert name in text
    assert "optimizer: Adam(learning_rate=<function" in text
    assert f"callbacks with a memory: [] then, [<{Best.__module__}.Best object>] now" in text
    for same in ("shuffle", "network", "loss:"):
        assert f"\n  {same}" not in text
    assert " at 0x" not in text
    assert all(np.array_equal(a, before[k]) for k, a in arrays_of(lib, net).items())
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True, optimizer=xn.Adam(lambda step: 0.01))


@pytest.mark.numpy_only
def test_a_folder_with_another_runs_files_is_not_written_over(lib, data, tmp_path):
    fit(network(lib), data, epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"has the checkpoints of a run, the newest step-000000000005.*resume=True"):
        fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path))


@pytest.mark.numpy_only
def test_two_runs_do_not_share_a_folder(lib, data, tmp_path):
    class Second(xn.Callback):
        def train_begin(self, run):
            with pytest.raises(BlockingIOError, match="another run writes its checkpoints here") as error:
                fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True)
            assert error.value.filename == str(tmp_path)

    fit(network(lib), data, callbacks=[Second()], checkpoint=xn.Checkpoint(tmp_path))


CODE = """
    import functools
    import xpnet as xn
    BASE, TABLE = {base}, [0.1, {base}]

    def helper(step):
        return BASE

    def reads_a_global(step):
        return 0.01 * TABLE[1]

    def calls_another(step):
        return helper(step)

    def has_a_default(step, rate={base}):
        return rate

    def holds(rate):
        def held(step):
            return rate
        return held

    def by_keyword(step, *, rate):
        return rate

    class Called:
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, step):
            return self.rate

    class Overrides:
        def __call__(self, step):
            return {base}

    class Inherits(Overrides):
        scale = property(lambda self: {base})

    class Loss(xn.MeanSquaredError):
        def terms(self, prediction, target):
            terms, gradient = super().terms(prediction, target)
            return {base} * terms, {base} * gradient

    class Layer(xn.Layer):
        def forward(self, x, training=False):
            return {base} * x, None

        def backward(self, dy, cache):
            return {base} * dy, {{}}

    things = [
        reads_a_global, calls_another, has_a_default, holds({base}), functools.partial(by_keyword, rate={base}),
        Called({base}), Called({base}).__call__, Overrides(), Inherits, xn.WarmUp(lambda step: {base}, 3), Loss(),
        xn.Sequential(xn.Dense(3, 2), xn.Sequential(Layer())), {{"mine": lambda p, t: {base} in ("a", {base})}},
        xn.Adam(helper), lambda step: [{base} for _ in range(step)],
    ]
"""


def things(base):
    space = {"__name__": "__main__"}
    exec(textwrap.dedent(CODE.format(base=base)), space)
    return space["things"]


@pytest.mark.numpy_only
def test_functions_and_classes_are_told_apart_by_their_code_and_constants():
    for one, twin, other in zip(things(0.5), things(0.5), things(0.25), strict=True):
        assert own_code(one) == own_code(twin), one
        assert own_code(one) != own_code(other), one
    assert own_code([xn.Adam(xn.CosineDecay(0.1, 3)), network_of_ours(), xn.accuracy, np.exp, np.linalg.norm]) == ""


def network_of_ours():
    return xn.Sequential(xn.Dense(3, 2), xn.Sequential(xn.ReLU()))


@pytest.mark.numpy_only
def test_code_is_told_the_same_in_every_process():
    program = textwrap.dedent(CODE.format(base="{'a', 'b', 'c', 0.5}")) + textwrap.dedent(
        """
        from xpnet.training.identity import own_code
        print(*map(own_code, things))
        """
    )
    told = {
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("optimizer", lambda base: {"optimizer": xn.Adam(things(base)[3])}),
        ("loss", lambda base: {"loss": things(base)[10]}),
        ("metrics", lambda base: {"metrics": {"mine": lambda p, t: base}}),
    ],
)
def test_other_code_of_the_same_name_is_refused(lib, data, tmp_path, name, options):
    x, y = data
    data = x, np.eye(K)[y]
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), **options(0.5))
    again = {"checkpoint": xn.Checkpoint(tmp_path), "resume": True}
    with pytest.raises(ValueError, match=rf"\n  code of {name}: \w+, Python 3\.\d+ then, \w+, Python 3\.\d+ now\n"):
        fit(network(lib), data, **again, **options(0.25))
    fit(network(lib), data, **again, **options(0.5))


@pytest.mark.numpy_only
def test_a_resumed_run_takes_as_many_threads_as_before(lib, data, tmp_path):
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    seen = []

    class Threads(xn.Callback):
        def step_end(self, run):
            seen.append(checkpoints.threads().get("blas"))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 400)), rng.integers(K, size=600)

    def wide():
        return xn.Sequential(xn.Dense(400, 300), xn.Tanh(), xn.Dense(300, K)).initialize(lib.backend, seed=1)

    def run(net, *callbacks, **options):
        made = [Threads(), *callbacks]
        return fit(net, (x, y), batch_size=200, epochs=3, validation_data=None, callbacks=made, **options)

    whole, again = wide(), wide()
    with limits(1):
        run(whole)
        with pytest.raises(StopError):
            run(wide(), StopAt(5), checkpoint=xn.Checkpoint(tmp_path, every=2))
        seen.clear()
    with limits(2):
        now = checkpoints.threads()
        run(again, checkpoint=xn.Checkpoint(tmp_path, every=2), resume=True)
        assert checkpoints.threads() == now
    assert seen == 5 * [1]
    assert_same(lib, whole, again)


@pytest.mark.numpy_only
@pytest.mark.parametrize("told", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_where_threads_cannot_be_set_other_numbers_of_them_bring_a_warning(lib, data, tmp_path, monkeypatch, told):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(told, "3")
    fit(network(lib), data, epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    fit(network(lib), data, epochs=2, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    monkeypatch.setenv(told, "5")
    with pytest.warns(RuntimeWarning, match=r"\(blas 3; now blas 5\): the last bits may differ; pip") as caught:
        fit(network(lib), data, epochs=3, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert [each.filename for each in caught] == [fit.__code__.co_filename]
    monkeypatch.delenv(told)
    assert checkpoints.threads()["blas"] >= 1
