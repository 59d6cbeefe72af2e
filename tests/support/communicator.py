"""Threads in place of processes, with the methods of an mpi4py communicator that `fit` calls."""

import copy
import pickle
import threading

from support import HANG


class Meeting:
    """Exchanges values between threads, which wait for one another."""

    def __init__(self, size):
        self.values = [None] * size
        self.barrier = threading.Barrier(size)
        self.arrived = 0
        self.lock = threading.Lock()

    def exchange(self, rank, thing):
        self.values[rank] = thing
        self.barrier.wait(HANG)
        values = list(self.values)
        self.barrier.wait(HANG)  # before the next exchange
        return values


class Communicator:
    def __init__(self, rank, size, meetings):
        self.rank, self.size, self.meetings = rank, size, meetings
        self.made = 0  # duplicates
        self.meeting = meetings[0]

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.size

    def Allreduce(self, a, total):
        given = self.meeting.exchange(self.rank, total.copy() if a is None else a)
        assert len({(each.shape, each.dtype) for each in given}) == 1  # MPI would not notice
        total[...] = sum(given[1:], given[0])

    def Allgather(self, a, met):
        met[...] = self.meeting.exchange(self.rank, a)

    def allgather(self, thing):
        return [pickle.loads(each) for each in self.meeting.exchange(self.rank, pickle.dumps(thing))]

    def gather(self, thing):
        found = self.allgather(thing)
        return found if self.rank == 0 else None

    def bcast(self, thing):
        found = self.meeting.exchange(self.rank, pickle.dumps(thing))[0]
        return thing if self.rank == 0 else pickle.loads(found)

    def Dup(self):
        twin = copy.copy(self)
        twin.meeting = self.meetings[1]
        return twin

    def Free(self):
        pass

    def Ibarrier(self):
        with self.meeting.lock:
            self.meeting.arrived += 1
        return self

    def Test(self):
        return self.meeting.arrived % self.size == 0

    def Abort(self, code):
        for meeting in self.meetings:
            meeting.barrier.abort()


class NCCL:
    """The methods of cupyx.distributed.NCCLBackend that `fit` calls, with their signatures."""

    def __init__(self, comm):
        self.comm, self.rank, self._n_devices = comm, comm.rank, comm.size

    def all_reduce(self, in_array, out_array, op="sum", stream=None):
        assert op == "sum"
        assert in_array.flags.c_contiguous
        self.comm.Allreduce(in_array.copy(), out_array)

    def all_gather(self, in_array, out_array, count, stream=None):
        assert in_array.flags.c_contiguous
        for part, each in zip(out_array, self.comm.meeting.exchange(self.rank, in_array), strict=True):
            assert each.size == part.size == count
            part[...] = each


def processes(size, job):
    """Return what `job(comm)` returns or raises in each of so many threads."""
    meetings = [Meeting(size), Meeting(size)]
    outcomes = [None] * size

    def run(rank):
        try:
            outcomes[rank] = job(Communicator(rank, size, meetings))
        except BaseException as error:
            outcomes[rank] = error
            meetings[0].barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    return outcomes
