"""Several processes that train together: they make what one makes, and fail together."""

import contextlib
import inspect
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import xpnet as xn
from support import HANG, ROOT
from support.cases import FEATURES, LAYERS, SEQUENCES
from support.checkpoints import StopAt, StopError
from support.communicator import NCCL, Communicator, processes
from support.together import (
    CASES,
    PARTS,
    SHARDED,
    WEIGHTS,
    Failing,
    Shards,
    T,
    X,
    Y,
    assert_alike,
    batches,
    broken,
    fit,
    layers,
    sharded,
    trained,
)
from xpnet.common.share import OverNCCL
from xpnet.kernels.shared import Alone, SharedBuffers, SharedStep, shared_step
from xpnet.training import processes as together
from xpnet.training.batches import Batch

FEW = "weights over the batch"  # the one of CASES that every backend goes through


@pytest.fixture
def quick(monkeypatch):
    """A process that fails alone is sure of it soon."""
    monkeypatch.setattr(together, "PATIENCE", 0.05)
    monkeypatch.setattr(together, "DELIVERY", 0.0)


# --- threads in the place of processes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case if case == FEW else pytest.param(case, marks=pytest.mark.numpy_only) for case in CASES]
)
def test_how_many_processes_there_are_changes_nothing(strict_lib, case):
    one = trained(case, strict_lib.backend)
    assert_alike(one, processes(4, lambda comm: trained(case, strict_lib.backend, comm)))


@pytest.mark.numpy_only
def test_in_shards_how_many_processes_there_are_does_not_change_a_bit(strict_lib):
    one = sharded(strict_lib.backend)
    plain = {f"{case}, {k}": a for case in SHARDED for k, a in trained(case, strict_lib.backend, epochs=2).items()}
    assert_alike(plain, [one])
    for count in (1, 2, 4, 8):
        assert_alike(one, processes(count, lambda comm: sharded(strict_lib.backend, comm)), atol=0)


@pytest.mark.numpy_only
def test_the_step_of_processes_is_in_stages_but_for_what_sums_over_the_batch(strict_lib, monkeypatch):
    net = xn.Sequential(xn.Dense(FEATURES, 3), xn.BatchNorm(3), xn.ReLU()).initialize(strict_lib.backend)
    kinds = {("auto", None): SharedBuffers, ("auto", 2): SharedStep, ("reference", None): SharedStep}
    for (choice, shards), kind in kinds.items():
        monkeypatch.setenv("XPNET_KERNELS", choice)
        step = shared_step(net, xn.MeanSquaredError(), xn.SGD(), (5, FEATURES), Alone(), shards)
        assert type(step) is kind
        if kind is SharedBuffers:
            assert all(stage.rowwise for stage in step.stages)


def shards(backend, comm, kind, **options):
    """A training of which each process has its own rows, with weights, as a source of this kind."""
    own = Shards(comm.Get_rank(), X, Y, WEIGHTS) if comm else None
    given = {"of rows": own, "of batches": own and own.batches()}[kind]
    x, held_out = (
        (xn.data.Shard(given), xn.data.Shard(Shards(comm.Get_rank(), X, Y).batches()))
        if comm
        else (Shards.whole(X, Y, WEIGHTS), [tuple(part[i:j] for part in (X, Y)) for i, j in itertools.pairwise(PARTS)])
    )
    net = xn.Sequential(*layers()).initialize(backend, "float64", seed=0)
    options = {"batch_size": 9, "shuffle": False, "epochs": 3, "metrics": ["accuracy"]} | options
    return fit(backend, comm, net, x=x, y=None, validation_data=held_out, **options)


@pytest.mark.parametrize("kind", ["of rows", "of batches"])
def test_shards_of_processes_train_as_the_batches_that_theirs_make(strict_lib, kind):
    one = shards(strict_lib.backend, None, kind)
    assert_alike(one, processes(3, lambda comm: shards(strict_lib.backend, comm, kind)))


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", ["of rows", "of batches"])
def test_a_run_on_shards_resumes_in_an_epoch_to_the_same_bits(strict_lib, tmp_path, kind, quick):
    def job(comm, name, **options):
        checkpoint = xn.Checkpoint(tmp_path / name, every=2) if name else None
        return shards(strict_lib.backend, comm, kind, shuffle=True, checkpoint=checkpoint, **options)

    def cut_off(comm):
        with contextlib.suppress(StopError):
            job(comm, "cut off", callbacks=lambda: [StopAt(8)])

    one = processes(3, lambda comm: job(comm, None))
    processes(3, cut_off)
    again = processes(3, lambda comm: job(comm, "cut off", resume=True))
    assert_alike(one[0], one + again, atol=0)


@pytest.mark.numpy_only
def test_the_sampler_of_a_loader_says_that_it_is_a_shard_and_is_told_the_epoch(strict_lib):
    class Sampler:
        num_replicas, epochs = 3, ()

        def set_epoch(self, epoch):
            self.epochs += (epoch,)

    class Loader:
        def __init__(self, rank):
            self.sampler, self.given = Sampler(), Shards(rank, X, Y).batches()

        def __iter__(self):
            return iter(self.given)

    def job(comm):
        loader = Loader(comm.Get_rank())
        made = fit(strict_lib.backend, comm, x=loader, y=None)
        return made, loader.sampler.epochs

    made = processes(3, job)
    assert_alike(fit(strict_lib.backend, None, x=Shards.whole(X, Y), y=None), [arrays for arrays, _ in made])
    assert {epochs for _, epochs in made} == {(0, 1)}


@pytest.mark.numpy_only
def test_shards_that_do_not_fit_are_refused(strict_lib):
    def job(comm, told, **given):
        with pytest.raises((ValueError, TypeError), match=told):
            fit(strict_lib.backend, comm, y=None, **given)

    source = xn.data.ArraySource(X, Y)
    for told, given in {
        "batch_size is 2, fewer rows than there are processes, 3": {"x": xn.data.Shard(source), "batch_size": 2},
        "Shard: source is an ndarray": {"x": xn.data.Shard(X)},
    }.items():
        assert processes(3, lambda comm, told=told, given=given: job(comm, told, **given)) == [None] * 3
    shard = {"x": xn.data.Shard(source), "shards": 4}
    assert processes(2, lambda comm: job(comm, "shards cut whole batches, and x is a part", **shard)) == [None] * 2

    def differ(comm):
        job(comm, "the processes differ", x=xn.data.Shard(Shards(comm.Get_rank(), X, Y, *[WEIGHTS] * comm.Get_rank())))

    assert processes(2, differ) == [None] * 2


def test_a_shard_that_fails_raises_its_own_error(strict_lib):
    class Own(xn.Layer):
        def forward(self, x, training=False):
            if training and x.shape[0] == 2:
                raise OSError("the disk is gone")
            return x, None

        def backward(self, dy, cache):
            return dy, {}

    net = xn.Sequential(xn.Dense(FEATURES, 3), Own()).initialize(strict_lib.backend)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(strict_lib.backend, None, net, shards=4)


@pytest.mark.parametrize(("shards", "count", "told"), [(6, 1, "such as 8; got 6"), (2, 4, "among 4 processes; got 2")])
def test_shards_that_do_not_divide_are_refused(shards, count, told):
    with pytest.raises(ValueError, match=f"shards must be a power of 2, .*{told}"):
        together.check_shards(shards, count)


class Nothing:
    """The share of a process that has none of a batch's five rows, and sums in which there is nothing else."""

    first, own, rows = 5, 0, 5

    def sum(self, *arrays):
        return [5 if isinstance(a, int) else a for a in arrays]


@pytest.mark.parametrize("name", sorted({*LAYERS, *SEQUENCES} - {"network", "gpt"}))  # made of others
def test_a_process_that_has_no_row_of_a_batch_takes_the_step_with_gradients_of_zero(strict_lib, rng, monkeypatch, name):
    make, inputs = SEQUENCES.get(name) or (LAYERS[name], lambda rng, n, t: rng.normal(size=(n, FEATURES)))
    below = [xn.Dense(FEATURES, FEATURES)] * (name in LAYERS)
    net = xn.Sequential(*below, make()).initialize(strict_lib.backend, seed=0)
    given = inputs(rng, 2, 4)
    x = net.backend.asarray(given, "float32" if given.dtype.kind == "f" else None)
    y = 0.0 * net.predict(x)
    step = shared_step(net, xn.MeanSquaredError("sum"), xn.SGD(0.1), tuple(x.shape), Alone())
    monkeypatch.setattr(step, "share", lambda batch: Nothing())
    with net.backend.scope():
        value, after = step.on_rows(step.start, Batch(x, y), slice(0, 0), ())
    assert float(value) == 0.0
    assert (strict_lib.to_numpy(after.weights) == strict_lib.to_numpy(step.start.weights)).all()


@pytest.mark.numpy_only
def test_a_checkpoint_resumes_on_another_number_of_processes(strict_lib, tmp_path):
    def job(comm, epochs, folder):
        return fit(strict_lib.backend, comm, epochs=epochs, checkpoint=xn.Checkpoint(folder, every=2), resume=True)

    one = job(None, 4, tmp_path / "one")
    processes(2, lambda comm: job(comm, 2, tmp_path / "many"))
    assert_alike(one, processes(3, lambda comm: job(comm, 4, tmp_path / "many")))


@pytest.mark.numpy_only
def test_what_the_first_process_refuses_all_do(strict_lib, tmp_path):
    def job(comm):
        return fit(strict_lib.backend, comm, checkpoint=xn.Checkpoint(tmp_path))

    processes(2, job)
    first, second = processes(2, job)
    assert isinstance(first, ValueError)
    assert "has the checkpoints of a run" in str(first)
    assert isinstance(second, RuntimeError)
    assert "process 0 failed" in str(second)


def test_a_run_that_diverges_does_so_in_all(strict_lib):
    def job(comm):
        with pytest.raises(xn.DivergenceError, match=r"in epoch 1, batch 3: the loss\.") as caught:
            fit(strict_lib.backend, comm, net=net(comm), y=T, loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e80))
        return str(caught.value)

    made = {}

    def net(comm):
        made[comm.Get_rank()] = xn.Sequential(xn.Dense(FEATURES, 3)).initialize(strict_lib.backend, "float64")
        return made[comm.Get_rank()]

    assert len(set(processes(3, job))) == 1
    for other in made.values():
        strict_lib.agrees(other.params["0.weight"], strict_lib.to_numpy(made[0].params["0.weight"]))


@pytest.mark.numpy_only
def test_one_that_fails_alone_ends_all_with_its_traceback(strict_lib, quick, capsys):
    def job(comm):
        return fit(strict_lib.backend, comm, x=Failing(comm, broken), y=None)

    outcomes = processes(3, job)
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    told = capsys.readouterr().err
    assert "fit: process 1 of 3 failed alone, which ends all of them:\nTraceback" in told
    assert "OSError: the disk is gone" in told


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("differing", "told"),
    [
        (lambda rank: {"l2": 0.1 * rank}, r"l2: 0.1 in process 1, 0.0 in process 0\nGive"),
        (lambda rank: {"epochs": 2 + rank}, r"epochs: 3 in process 1, 2 in process 0\nGive"),
        (lambda rank: {"optimizer": xn.SGD(0.1 + rank)}, r"optimizer: SGD\(.*=1.1.*0.1.* in process 0\nGive"),
        (lambda rank: {"x": X + rank}, r"x: float64 \(23, 4\) \w+ in process 1, float64 \(23, 4\) \w+ in process 0\n"),
        (lambda rank: {"validation_data": (X, Y) if rank else None}, "validation x: .* in process 1, nothing"),
        (lambda rank: {"net": xn.Sequential(xn.Dense(4, 3 + rank))}, r"network: .*\(4, 4\).* in process 1, .*\(4, 3\)"),
    ],
    ids=["l2", "epochs", "optimizer", "x", "validation", "network"],
)
def test_processes_that_were_given_different_things_are_told_before_the_first_step(strict_lib, differing, told):
    def job(comm):
        given = differing(comm.Get_rank())
        if "net" in given:
            given["net"].initialize(strict_lib.backend, "float64")
        with pytest.raises(ValueError, match=f"fit: the processes differ in what they were given:\n  {told}"):
            fit(strict_lib.backend, comm, **given)

    assert processes(2, job) == [None, None]


@pytest.mark.numpy_only
@pytest.mark.parametrize("rows", [4, None], ids=["of other sizes", "fewer"])
def test_processes_that_are_given_different_batches_are_told(strict_lib, rows):
    def job(comm):
        given = batches()
        if comm.Get_rank():
            given[2:] = [tuple(part[:rows] for part in given[2])] if rows else []
        with pytest.raises(RuntimeError, match=r"given different batches, in their order: 5 rows, (4 rows|an end)"):
            fit(strict_lib.backend, comm, x=given, y=None)

    assert processes(2, job) == [None, None]


@pytest.mark.numpy_only
def test_a_signal_to_one_is_known_to_all_from_the_same_step_on():
    def job(comm):
        group = together.Processes(comm, in_order=False)
        if group.rank == 1:
            group.receive(signal.SIGTERM)
        group.begin_step(2, 6)
        return group.signal

    assert processes(3, job) == [signal.SIGTERM] * 3


def test_what_cannot_be_trained_by_several_is_refused(strict_lib):
    class Own:
        def value_and_grad(self, prediction, target):
            raise AssertionError

    def job(comm):
        with pytest.raises(TypeError, match="several processes or shards need a loss with `terms`, one that der"):
            fit(strict_lib.backend, comm, y=T, loss=Own())

    assert processes(2, job) == [None, None]
    with pytest.raises(TypeError, match=r"comm must be a communicator of mpi4py, .* CuPy's NCCLBackend; got 4"):
        fit(strict_lib.backend, 4, xn.Sequential(xn.Dense(FEATURES, 3)).initialize(strict_lib.backend))


@pytest.mark.cupy_only
@pytest.mark.parametrize("shards", [None, 4])
def test_arrays_of_cupy_travel_over_nccl_and_nothing_by_way_of_the_host(lib, monkeypatch, shards):
    def job(comm):
        host = Communicator.Allreduce

        def allreduce(self, a, total):
            assert not isinstance(total, np.ndarray)
            host(self, a, total)

        monkeypatch.setattr(Communicator, "Allreduce", allreduce)
        return trained("weights, l2, clip_norm", lib.backend, OverNCCL(NCCL(comm), comm), shards=shards, epochs=2)

    one = trained("weights, l2, clip_norm", lib.backend, shards=shards, epochs=2)
    assert_alike(one, processes(2, job), atol=0 if shards else 1e-12)


@pytest.mark.cupy_only
@pytest.mark.parametrize("method", ["all_reduce", "all_gather"])
def test_the_stand_in_for_nccl_has_the_signatures_of_cupys(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that NCCL's library is not there
        from cupyx.distributed import NCCLBackend
    assert inspect.signature(getattr(NCCL, method)) == inspect.signature(getattr(NCCLBackend, method))


@pytest.mark.numpy_only
def test_an_nccl_backend_comes_with_the_processes_of_mpi(monkeypatch):
    def mpi(comm):
        world = types.SimpleNamespace(MPI=types.SimpleNamespace(COMM_WORLD=comm))
        monkeypatch.setitem(sys.modules, "mpi4py", world)
        return comm

    comm = mpi(Communicator(1, 3, [None]))
    found = together.communicator(NCCL(comm))
    assert (type(found), found.Get_rank(), found.mpi) == (OverNCCL, 1, comm)
    mpi(Communicator(0, 1, [None]))
    with pytest.raises(ValueError, match="an NCCLBackend of process 1 of 3, and MPI has 0 of 1: make it NCCLBackend"):
        together.communicator(NCCL(comm))
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match="is sent by MPI: pip install mpi4py mpich"):
        together.communicator(NCCL(comm))


# --- processes --------------------------------------------------------------------------------------------------------


def mpiexec(count, *arguments):
    """The end of so many processes that run tests/support/mpi_program.py."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    program = shutil.which("mpiexec", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    return subprocess.run(
        [program or beside, "-n", str(count), sys.executable, ROOT / "tests/support/mpi_program.py", *arguments],
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone():
    return {case: trained(case, xn.get_backend("numpy")) for case in CASES}


@pytest.mark.mpi_only
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_of_mpi_make_what_one_makes(alone, tmp_path, count):
    ended = mpiexec(count, "cases", tmp_path / "made")
    assert ended.returncode == 0, ended.stderr
    made = pickle.loads((tmp_path / "made").read_bytes())
    assert len(made) == count
    for case, one in alone.items():
        assert_alike(one, [each[case] for each in made])
    if count != 3:  # among which eight shards do not divide
        assert_alike(sharded(xn.get_backend("numpy")), [each["in shards"] for each in made], atol=0)


@pytest.mark.mpi_only
def test_a_process_of_mpi_that_fails_ends_all_with_its_traceback():
    ended = mpiexec(3, "fails")
    assert ended.returncode != 0
    assert "fit: process 1 of 3 failed alone, which ends all of them:\nTraceback" in ended.stderr
    assert "OSError: the disk is gone" in ended.stderr


@pytest.mark.mpi_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_of_mpi_that_is_killed_ends_all_and_the_run_resumes(tmp_path, number):
    one = fit(xn.get_backend("numpy"), None, epochs=4, shuffle=False)
    ended = mpiexec(2, "killed", tmp_path, str(int(number)))
    assert ended.returncode != 0
    assert ("stopped at step 7" in ended.stderr) == (number == signal.SIGTERM)
    ended = mpiexec(3, "resumed", tmp_path, tmp_path / "made")
    assert ended.returncode == 0, ended.stderr
    assert_alike(one, pickle.loads((tmp_path / "made").read_bytes()))
