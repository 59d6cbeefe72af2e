"""The program of each process of mpiexec for tests/training/test_processes.py; its arguments say what it does."""

import pickle
import signal
import sys

from mpi4py import MPI

import xpnet as xn
from support.together import CASES, Failing, broken, fit, sharded, trained


def leave(comm, outcome, path):
    """Write the outcomes of all processes to a file."""
    made = comm.gather(outcome)
    if comm.Get_rank() == 0:
        with open(path, "wb") as file:
            pickle.dump(made, file)


def main(what, *arguments):
    comm, backend = MPI.COMM_WORLD, xn.get_backend("numpy")
    if what == "cases":
        made = {case: trained(case, backend, comm) for case in CASES}
        if 8 % comm.Get_size() == 0:
            made["in shards"] = sharded(backend, comm)
        leave(comm, made, *arguments)
    elif what == "fails":
        fit(backend, comm, x=Failing(comm, broken), y=None, prefetch=0)
    elif what == "killed":
        folder, number = arguments
        source = Failing(comm, lambda: signal.raise_signal(int(number)))
        fit(backend, comm, x=source, y=None, epochs=4, prefetch=0, checkpoint=xn.Checkpoint(folder, every=2))
    elif what == "resumed":
        folder, path = arguments
        source = Failing(comm, lambda: None)
        checkpoint = xn.Checkpoint(folder, every=2)
        outcome = fit(backend, comm, x=source, y=None, epochs=4, checkpoint=checkpoint, resume=True)
        leave(comm, outcome, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
