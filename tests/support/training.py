"""A small network, a small problem, and fits of the network to the problem."""

import signal

import numpy as np

import xpnet as xn
from support.cases import FEATURES

CROSS, SQUARED = xn.SoftmaxCrossEntropy(), xn.MeanSquaredError()


STILL = xn.SGD(1e-30, momentum=0.0)  # steps too small to move a weight


def small(lib, *layers, dtype="float64", seed=0):
    layers = layers or (xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.2), xn.Tanh(), xn.Dense(8, 3))
    return xn.Sequential(*layers).initialize(lib.backend, dtype, seed=seed)


def problem(rows=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES))
    return x, (x @ rng.normal(size=(FEATURES, 3))).argmax(axis=1)


X, Y = problem()


T = np.eye(3)[Y]


def fit(net, x=X, y=Y, loss=CROSS, optimizer=None, batch_size=4, **options):
    return net.fit(x, y, loss=loss, optimizer=optimizer or xn.SGD(0.1), batch_size=batch_size, **options)


def bits(net, *names):
    arrays = net.params | net.state
    return {k: net.backend.to_numpy(a).tobytes() for k, a in arrays.items() if not names or k in names}


def all_finite(net):
    return all(np.isfinite(net.backend.to_numpy(a)).all() for a in (net.params | net.state).values())


class On(xn.Callback):
    """A callback from functions: On(step_end=lambda run: ...)."""

    def __init__(self, **hooks):
        vars(self).update(hooks)


def interrupt(step, times=1):
    def step_end(run):
        if run.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return On(step_end=step_end)


class Recorder:
    """A loss with only `value_and_grad`, which records the rows of each batch."""

    def __init__(self):
        self.batches = []

    def value_and_grad(self, prediction, target):
        host = xn.backends.backend_of(target).to_numpy
        np.testing.assert_array_equal(host(prediction), host(target))  # x's row beside its own target
        self.batches.append([int(v) for v in host(target)[:, 0]])
        return SQUARED.value_and_grad(prediction, target)

    def orders(self, lib, **options):
        """Return the order of ten rows in each epoch of fits of a network that returns its input."""
        net = small(lib, xn.Dense(1, 1))
        net.set_params({"0.weight": np.ones((1, 1)), "0.bias": np.zeros(1)})
        rows = np.arange(10.0)[:, None]
        for _ in range(2):
            fit(net, rows, rows, self, STILL, epochs=2, **options)
        assert [len(batch) for batch in self.batches] == [4, 4, 2] * 4
        order = [row for batch in self.batches for row in batch]
        return [order[i : i + 10] for i in range(0, 40, 10)]
