"""Interrupted runs, and comparisons of their results."""

import numpy as np

import xpnet as xn

N, D, K = 23, 4, 3


LOSS = xn.SoftmaxCrossEntropy()


BATCHES = 5  # the number of batches: of 5 rows, the last of 3


class Best(xn.Callback):
    """Remembers values of every kind that a checkpoint holds."""

    memory = ("lowest", "name", "values", "weights", "vector")

    def train_begin(self, run):
        self.lowest, self.name, self.values, self.weights, self.vector = None, "none", [], {}, np.zeros(2)

    def epoch_end(self, run):
        loss = run.history["loss"][-1]
        self.values = [*self.values, loss]
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.name = loss, f"epoch {run.epoch}"
            self.weights, self.vector = run.net.params, np.array([run.epoch, run.step])


class Slower(xn.Callback):
    def epoch_end(self, run):
        if not callable(run.optimizer.learning_rate):
            run.optimizer.learning_rate *= 0.7


class StopError(Exception):
    pass


class StopAt(xn.Callback):
    """Ends a run with an exception, as a power cut would, after a step or at the end of an epoch."""

    def __init__(self, step=0, epoch=0):
        self.step, self.epoch = step, epoch

    def step_end(self, run):
        if run.step == self.step:
            raise StopError

    def epoch_end(self, run):
        if run.epoch == self.epoch:
            raise StopError


def network(lib, seed=1, dtype="float32"):
    return xn.Sequential(
        xn.Dense(D, 6), xn.BatchNorm(6), xn.ReLU(), xn.Dropout(0.3), xn.Dense(6, 6), xn.Tanh(), xn.Dense(6, K)
    ).initialize(lib.backend, dtype, seed=seed)


def fit(net, data, **options):
    x, y = data
    defaults = {"optimizer": xn.Adam(0.01), "loss": LOSS, "epochs": 4, "batch_size": 5, "validation_data": (x, y)}
    return net.fit(x, y, **(defaults | options))


def arrays_of(lib, net):
    return {k: np.array(lib.to_numpy(a)) for k, a in (net.params | net.state).items()}


def assert_same(lib, one, two):
    for name, a in arrays_of(lib, one).items():
        np.testing.assert_array_equal(arrays_of(lib, two)[name], a, err_msg=name)


class Own(xn.Sequential):
    """A network that JSON cannot describe, since it does not keep its argument."""

    def __init__(self, *layers, taste=None):
        super().__init__(*layers)
