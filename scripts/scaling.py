"""Model the step of several processes, check the model here, and draw it for up to 4,096 of them.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 mpiexec -n 4 python scripts/scaling.py --plot scaling.png

Each process trains 784-1024-1024-10 on 512 rows of every batch. Measured are a step of one process alone, while one or
more of them are at work, and the sum of arrays of many sizes over two processes. From them the model has, for p
processes that sum n bytes on c cores,

    sum    T(n, p) = 2 log2(p) latency + 2 (p - 1) / p n / bandwidth      (halves exchanged, summed and gathered again)
    step   max(1, p / c) (t(min(p, c)) + T(n, min(p, c))) + the gaps between turns where processes share a core

and is held to the steps that 1, 2 and 4 processes really take: within 20% of each. All are the shortest of some turns,
for what else runs on a machine only adds to them. Thakur, Rabenseifner, Gropp 2005 has the sum.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from parts.command_line import a_picture, count

import xpnet as xn

ROWS, STEPS = 512, 10
SIZES = [2**k for k in range(0, 22, 3)] + [1_863_690]  # float32, the last the network's parameters
ALLOWED = 0.2
NETWORKS = {"InfiniBand, 2 µs and 25 GB/s": (2e-6, 25e9), "Ethernet, 30 µs and 3 GB/s": (30e-6, 3e9)}


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=count, default=7, help="of each measurement, in turn; default: 7")
    parser.add_argument("--cores", type=count, default=len(os.sched_getaffinity(0)), help="default: those it may use")
    parser.add_argument("--plot", metavar="FILE.png", type=a_picture, help="draw the sums, and the model")
    return parser.parse_args()


# --- measuring --------------------------------------------------------------------------------------------------------


def meet(comm: Any) -> None:
    """Wait for all processes, asleep: MPI's own waiting keeps a core busy."""
    arrival = comm.Ibarrier()
    while not arrival.Test():
        time.sleep(0.01)


def of_some(comm: Any, some: int, measure: Callable[[Any], float]) -> float:
    """What `measure` takes in the first so many processes, the longest of them, while the others sleep."""
    part = comm.Split(comm.Get_rank() < some, comm.Get_rank())
    meet(comm)
    seconds = measure(part) if comm.Get_rank() < some else 0.0
    meet(comm)
    part.Free()
    return max(comm.allgather(seconds))


def step(comm: Any, processes: int) -> float:
    """The seconds of a training step on ROWS rows for each of so many processes."""
    rng = np.random.default_rng(0)
    rows = ROWS * processes
    x, y = rng.normal(size=(rows, 784)).astype(np.float32), rng.integers(10, size=rows)
    layers = xn.Dense(784, 1024), xn.ReLU(), xn.Dense(1024, 1024), xn.ReLU(), xn.Dense(1024, 10)
    net = xn.Sequential(*layers).initialize("numpy")
    each = Each()
    net.fit(
        np.concatenate([x] * STEPS),
        np.concatenate([y] * STEPS),
        loss=xn.SoftmaxCrossEntropy(),
        optimizer=xn.Adam(1e-4),
        batch_size=rows,
        callbacks=[each],
        comm=comm,
    )
    return each.shortest if comm is None or comm.Get_rank() == 0 else 0.0


class Each(xn.Callback):
    """The shortest of the steps but the first, which makes the arrays."""

    def __init__(self) -> None:
        self.shortest, self.ended = math.inf, 0.0

    def step_end(self, run: Any) -> None:
        now = time.perf_counter()
        if run.step > 2:
            self.shortest = min(self.shortest, now - self.ended)
        self.ended = now


def sums(comm: Any, size: int) -> float:
    """The seconds of a sum of float32 numbers over the processes."""
    a = np.ones(size, np.float32)
    seconds = []
    for _ in range(20):
        comm.Barrier()
        began = time.perf_counter()
        comm.Allreduce(None, a)
        seconds.append(time.perf_counter() - began)
    return float(np.min(seconds))


# --- the model --------------------------------------------------------------------------------------------------------


def sum_of(size: int, processes: int, latency: float, bandwidth: float) -> float:
    """The seconds of a sum of so many bytes."""
    return 2 * math.log2(processes) * latency + 2 * (processes - 1) / processes * size / bandwidth


def fitted(seconds: dict[int, float]) -> tuple[float, float]:
    """Latency and bandwidth from sums over two processes, by least squares of the relative errors."""
    sizes, times = 4.0 * np.array([*seconds]), np.array([*seconds.values()])
    terms = np.stack([np.full_like(times, 2.0), sizes], axis=1) / times[:, None]
    (latency, each), *_ = np.linalg.lstsq(terms, np.ones_like(times))
    return float(latency), 1.0 / float(each)


def main() -> None:
    """Measure, print, and draw what was asked for."""
    options = arguments()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError("it needs mpi4py: pip install mpi4py mpich, and mpiexec -n 4 before python") from error
    comm, cores = MPI.COMM_WORLD, options.cores
    counts = [p for p in (1, 2, 4) if p <= comm.Get_size()]
    if len(counts) < 2:
        raise ValueError("it measures several processes: mpiexec -n 4 python scripts/scaling.py")
    busy = range(1, min(cores, comm.Get_size()) + 1)
    alone: dict[int, float] = dict.fromkeys(busy, math.inf)
    taken: dict[int, float] = dict.fromkeys(counts, math.inf)
    two: dict[int, float] = dict.fromkeys(SIZES, math.inf)
    gap: dict[int, float] = dict.fromkeys(counts, math.inf)
    for _ in range(options.turns):
        for k in busy:
            alone[k] = min(alone[k], of_some(comm, k, lambda part: step(None, 1)))
        for p in counts:
            taken[p] = min(taken[p], of_some(comm, p, lambda part, p=p: step(part, p)))
            gap[p] = min(gap[p], of_some(comm, p, lambda part: sums(part, 1)))
        for size in SIZES:
            two[size] = min(two[size], of_some(comm, 2, lambda part, size=size: sums(part, size)))
    if comm.Get_rank() > 0:
        return
    latency, bandwidth = fitted(two)

    def modelled(p: int) -> float:
        together = min(p, cores)
        sharing = max(1.0, p / cores)
        own = alone[together] + (sum_of(4 * SIZES[-1], together, latency, bandwidth) if together > 1 else 0.0)
        return sharing * own + 3 * gap[p] * (sharing > 1)

    print(f"a step alone: {', '.join(f'{1e3 * t:.1f} ms with {k} at work' for k, t in alone.items())}")
    print(f"sums: latency {1e6 * latency:.1f} µs, bandwidth {bandwidth / 1e9:.2f} GB/s; {cores} cores\n")
    print("processes  measured  modelled")
    off = {p: modelled(p) / taken[p] - 1 for p in counts}
    for p in counts:
        print(f"{p:>9}  {1e3 * taken[p]:5.1f} ms  {1e3 * modelled(p):5.1f} ms  {off[p]:+.0%}")
    if options.plot:
        draw(options.plot, two, (latency, bandwidth), alone, taken, cores)
        print(f"picture in {options.plot}")
    if (worst := max(map(abs, off.values()))) > ALLOWED:
        sys.exit(f"scaling: the model is off by {worst:.0%}, more than {ALLOWED:.0%}")


def draw(
    path: Any,
    two: dict[int, float],
    link: tuple[float, float],
    alone: dict[int, float],
    taken: dict[int, float],
    cores: int,
) -> None:
    """The sums by size, and the efficiency by the number of processes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    sizes = 4 * np.array([*two])
    left.loglog(sizes, 1e6 * np.array([*two.values()]), "o", label="measured, two processes")
    left.loglog(sizes, [1e6 * sum_of(int(n), 2, *link) for n in sizes], label="model")
    left.set(xlabel="bytes", ylabel="µs", title="A sum over two processes")
    left.legend()
    ranks = [2**k for k in range(1, 13)]
    here = f"this machine's memory, {1e6 * link[0]:.0f} µs and {link[1] / 1e9:.1f} GB/s"
    for name, (latency, bandwidth) in ({here: link} | NETWORKS).items():
        messages = [sum_of(4 * SIZES[-1], p, latency, bandwidth) + 2 * sum_of(4, p, latency, bandwidth) for p in ranks]
        right.semilogx(ranks, [100 * alone[1] / (alone[max(alone)] + each) for each in messages], label=name, base=2)
    own = [(p, 100 * alone[1] / t) for p, t in taken.items() if 1 < p <= cores]
    right.plot(*zip(*own, strict=True), "ko", label="measured here")
    right.set(xlabel="processes", ylabel="% of the speed of one process times their number", ylim=(0, 105),
              title="784-1024-1024-10, 512 rows a process, Adam, float32")  # fmt: skip
    right.set_xticks(ranks, [f"{p:,}" for p in ranks], rotation=45)
    right.legend(loc="lower left")
    assumed = (
        f"Assumed: a core for each process, as fast as here with {max(alone)} at work\n"
        f"({1e3 * alone[max(alone)]:.0f} ms a step); one sum of {4 * SIZES[-1] / 1e6:.1f} MB after backward,\n"
        "by halves, at the link's full bandwidth, and two short ones; nobody waits\n"
        "for a slower one, and nothing else is on the network.\n"
        "Not measured beyond the dots."
    )
    right.text(0.98, 0.6, assumed, transform=right.transAxes, ha="right", va="top", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"scaling: {error}")
