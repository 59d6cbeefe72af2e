"""Training in several processes, with the results of one."""

import itertools

import numpy as np

import xpnet as xn
from support.cases import FEATURES, OPTIMIZERS, of_images

N, K = 23, 3  # of 23 rows in batches of 5 the last has 3, fewer than four processes
rng = np.random.default_rng(0)
X, Y, WEIGHTS = rng.normal(size=(N, FEATURES)), rng.integers(K, size=N), rng.integers(1, 4, size=N)
T = np.eye(K)[Y]


class OverBatch(xn.SoftmaxCrossEntropy):
    """A loss that is divided by the weights of each batch."""

    weights_over = "batch"


def layers():
    return xn.Dense(FEATURES, 8), xn.BatchNorm(8), xn.ReLU(), xn.Dropout(0.2), xn.Dense(8, K)


def images():
    return of_images((1, 2, 2), xn.Conv2d(1, 3, 2, padding="same"), xn.BatchNorm(3), xn.MaxPool2d(2)), xn.Dense(3, K)


def probabilities():  # though the last layer is no Sigmoid or Softmax
    return *layers(), xn.Sigmoid(), xn.Rescale(1.0, 0.0)


def batches():
    return [(X[i : i + 5], Y[i : i + 5], WEIGHTS[i : i + 5]) for i in range(0, N, 5)]


LONG = {"epochs": 10}  # of 5 steps
CASES = {  # layers, loss, and what is given to fit beside or in place of X, Y, SGD, and two epochs
    **{name: (layers, xn.SoftmaxCrossEntropy(), {"optimizer": make()} | LONG) for name, make in OPTIMIZERS.items()},
    "weights, l2, clip_norm": (layers, xn.SoftmaxCrossEntropy(),
                               {"sample_weight": WEIGHTS, "l2": 0.1, "optimizer": xn.SGD(0.1, clip_norm=0.1)} | LONG),
    "a sum": (layers, xn.SoftmaxCrossEntropy("sum"), {"sample_weight": WEIGHTS, "l2": 0.1, "batch_size": 3}),
    "weights over the batch": (layers, OverBatch(), {"sample_weight": WEIGHTS, "l2": 0.1, "epochs": 1}),
    "ignored rows": (layers, xn.SoftmaxCrossEntropy(ignore=0, label_smoothing=0.1), {"batch_size": 3}),
    "ignored rows, weights over the batch": (layers, OverBatch(ignore=0), {"sample_weight": WEIGHTS}),
    "every element": (layers, xn.MeanSquaredError(), {"y": T, "sample_weight": WEIGHTS}),
    "probabilities": (probabilities, xn.BinaryCrossEntropy(), {"y": T, "optimizer": xn.SGD(0.01)}),
    "images": (images, xn.SoftmaxCrossEntropy(), {}),
    "a source of rows": (layers, xn.SoftmaxCrossEntropy(), {"x": xn.data.ArraySource(X, Y), "y": None}),
    "a stream of batches": (layers, xn.SoftmaxCrossEntropy(), {"x": batches(), "y": None}),
    "validation in batches": (layers, xn.SoftmaxCrossEntropy(), {
        "validation_data": [(X[i : i + 4], Y[i : i + 4]) for i in range(0, N, 4)], "metrics": ["accuracy"]}),
    "one batch, and what callbacks decide": (layers, xn.SoftmaxCrossEntropy(), {
        "batch_size": None, "epochs": 9, "validation_data": (X, Y), "metrics": ["accuracy"],
        "callbacks": lambda: [xn.ReduceOnPlateau("val_loss", patience=1, min_delta=1e9),
                              xn.EarlyStopping("val_loss", patience=3, min_delta=1e9)],
    }),
}  # fmt: skip


def fit(backend, comm, net=None, **options):
    """Return the results of a training, arrays by name. Processes start from different parameters, of which the first
    one's count.
    """
    if net is None:
        net = xn.Sequential(*layers()).initialize(backend, "float64", seed=comm.Get_rank() if comm else 0)
    given = {"x": X, "y": Y, "loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(0.1), "batch_size": 5, "epochs": 2}
    history = net.fit(**(given | options | {"callbacks": options.get("callbacks", list)()}), comm=comm)
    arrays = {name: net.backend.to_numpy(a) for name, a in (net.params | net.state).items()}
    return arrays | dict(history) | {"order": net.rng.permutation(N), "steps": history.steps}


def trained(case, backend, comm=None, **more):
    """`fit` for one of CASES."""
    make, loss, options = CASES[case]
    net = xn.Sequential(*make()).initialize(backend, "float64", seed=comm.Get_rank() if comm else 0)
    return fit(backend, comm, net, loss=loss, **(options | more))


PARTS = 0, 9, 11, 23  # where the rows of three processes begin: 9 of them, 2 and 12


class Shards:
    """A process's own rows, also as batches."""

    def __init__(self, rank, *parts, size=3):
        own = slice(*PARTS[rank : rank + 2])
        self.parts, self.size = [part[own] for part in parts], size

    def __len__(self):
        return len(self.parts[0])

    def __getitem__(self, rows):
        return tuple(part[rows] for part in self.parts)

    def batches(self):
        return [self[i : i + self.size] for i in range(0, len(self), self.size)]

    @staticmethod
    def whole(*parts, size=3):
        """Return the whole batches, which the batches of three processes form."""
        shards = [Shards(rank, *parts, size=size).batches() for rank in range(3)]
        kth = itertools.zip_longest(*shards, fillvalue=tuple(part[:0] for part in parts))
        return [tuple(map(np.concatenate, zip(*each, strict=True))) for each in kth]


class Failing:
    """A source that calls a function in process 1, in batch 3 of epoch 2."""

    def __init__(self, comm, fail):
        self.here, self.epoch, self.fail = comm.Get_rank() == 1, 0, fail

    def __iter__(self):
        self.epoch += 1
        for number, batch in enumerate(batches(), 1):
            if self.here and (self.epoch, number) == (2, 3):
                self.fail()
            yield batch[:2]  # with weights, the source would be read once more


def broken():
    raise OSError("the disk is gone")


SHARDED = "weights, l2, clip_norm", "a sum", "images"  # of CASES, in batches of fewer rows than shards


def sharded(backend, comm=None):
    """Trainings of two epochs in eight shards."""
    made = {case: trained(case, backend, comm, shards=8, epochs=2) for case in SHARDED}
    return {f"{case}, {name}": a for case, arrays in made.items() for name, a in arrays.items()}


def assert_alike(one, many, atol=1e-12):
    """Assert that each of many processes has the results of one, to within rounding, and all the same bits."""
    for outcome in many:
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome.keys() == one.keys()
        for name, a in one.items():
            np.testing.assert_allclose(outcome[name], a, rtol=0, atol=atol, err_msg=name)
            np.testing.assert_array_equal(outcome[name], many[0][name], err_msg=name)
