"""What a fit minimizes beside its loss, weighted rows and an L2 penalty; and going on with an optimizer's memory."""

import numpy as np
import pytest

import xpnet as xn
from support import cases
from xpnet.kernels import training_step
from xpnet.losses.objective import Objective
from xpnet.training import inputs
from xpnet.training.batches import Batch

N, D, K = 12, 4, 3
LOSSES = {name: case for name, case in cases.LOSSES.items() if "probabilities" not in case[1].__name__}


def network(lib, *last):
    return xn.Sequential(xn.Dense(D, 6), xn.BatchNorm(6), xn.Tanh(), xn.Dense(6, K), *last).initialize(
        lib.backend, "float64", seed=1
    )


def plain(*layers):
    return xn.Sequential(xn.Dense(D, 5), xn.ReLU(), xn.Dense(5, K), *layers)


def data(make_target, rng, n=N):
    return rng.normal(size=(n, D)), make_target(rng, n, K)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_whole_numbers_repeat_the_rows(lib, rng, name, reduction):
    make, _, target = LOSSES[name]
    x, y = data(target, rng)
    repeats = rng.integers(0, 4, size=N)
    repeats[:2] = 0, 3
    loss = make(reduction=reduction)
    net = plain().initialize(lib.backend, "float64", seed=2)
    weighted, grads = net.value_and_grad(x, y, loss, sample_weight=repeats)
    repeated, expected = net.value_and_grad(np.repeat(x, repeats, 0), np.repeat(y, repeats, 0), loss)
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-12)
    for key, g in expected.items():
        lib.agrees(grads[key], lib.to_numpy(g), rtol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("make", [xn.SoftmaxCrossEntropy, xn.MeanSquaredError])
def test_the_gradient_with_weights_and_penalty_is_that_of_the_value(lib, rng, make, reduction):
    x, y = data(cases.one_hot, rng)
    weights = rng.uniform(0.0, 2.0, size=N)
    net, loss = network(lib), make(reduction=reduction)
    _, grads = net.value_and_grad(x, y, loss, sample_weight=weights, l2=0.7)
    params = {k: lib.to_numpy(a).copy() for k, a in net.params.items()}
    for name, a in params.items():
        direction = rng.normal(size=a.shape)
        ends = []
        for step in (1e-6, -1e-6):
            net.set_params(params | {name: a + step * direction})
            ends.append(float(net.value_and_grad(x, y, loss, sample_weight=weights, l2=0.7)[0]))
        slope = float(np.sum(lib.to_numpy(grads[name]) * direction))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-7), name
        net.set_params(params)


def test_the_penalty_is_on_trained_weights_alone_and_divided_as_the_loss(lib, rng):
    x, y = data(cases.classes, rng)
    net = plain(xn.Dense(K, K, trainable=False)).initialize(lib.backend, "float64", seed=0)
    net.set_params({k: rng.normal(size=tuple(a.shape)) for k, a in net.params.items()})  # no bias is 0
    squares = sum(float(np.sum(lib.to_numpy(net.params[k]) ** 2)) for k in ("0.weight", "2.weight"))
    weights = rng.uniform(0.5, 2.0, size=N)
    for reduction, sample_weight, share in (("mean", None, N), ("mean", weights, N), ("sum", weights, 1)):
        loss = xn.SoftmaxCrossEntropy(reduction)
        without, bare = net.value_and_grad(x, y, loss, sample_weight=sample_weight)
        with_it, grads = net.value_and_grad(x, y, loss, sample_weight=sample_weight, l2=0.3)
        assert float(with_it) - float(without) == pytest.approx(0.15 * squares / share, rel=1e-10)
        for key, g in grads.items():
            more = 0.3 * lib.to_numpy(net.params[key]) / share if key in ("0.weight", "2.weight") else 0.0
            lib.agrees(g, lib.to_numpy(bare[key]) + more)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("make", [xn.SoftmaxCrossEntropy, xn.MeanSquaredError])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_takes_the_step_that_value_and_grad_says(lib, rng, monkeypatch, kernels, make, weighted):
    """By SGD without momentum w ← w - η g, on whatever step this backend has; Nesterov's gradient is taken ahead."""
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    x, y = data(cases.one_hot, rng)
    sample_weight = rng.uniform(0.0, 2.0, size=N) if weighted else None
    net, loss = network(lib), make()
    value, grads = net.value_and_grad(x, y, loss, sample_weight=sample_weight, l2=0.5)
    before = {k: lib.to_numpy(a).copy() for k, a in net.params.items()}
    history = net.fit(
        x, y, loss=loss, optimizer=xn.SGD(0.1, momentum=0.0), batch_size=None, sample_weight=sample_weight, l2=0.5
    )
    assert history["loss"] == pytest.approx([float(value)], rel=1e-12)
    for key, g in grads.items():
        if key != "0.bias":  # 0 but for rounding, before a BatchNorm
            lib.agrees(net.params[key], before[key] - 0.1 * lib.to_numpy(g), rtol=1e-11)


class OfRows(xn.MeanSquaredError):
    """A user's loss whose terms are of whole rows, and whose mean is still over elements."""

    def terms(self, prediction, target):
        terms, gradient = super().terms(prediction, target)
        return xn.ops.namespace(terms).sum(terms, axis=1), gradient


class OverThirds(xn.Huber):
    """A user's loss whose mean is over what it says itself."""

    def divisor(self, prediction, target):
        return 3.0 * target.shape[0] * target.shape[1]


BATCHED = cases.LOSSES | {name: (make, cases.values, cases.values) for name, make in
                          {"a user's, of rows": OfRows, "a user's own mean": OverThirds}.items()}  # fmt: skip


def steps_of(net, x, y, loss, slices, sample_weight, l2):
    """The loss and the gradient of each batch at the network's parameters: by SGD, a step of rate 1 is the gradient."""
    x, y = inputs.rows_of_pair(net, "fit", x, y, loss, whole=True)
    batch = Batch(x, y, inputs.weights_for(net, "fit", loss, y, sample_weight))
    to_numpy, before = net.backend.to_numpy, net.params
    with net.backend.scope():
        step = training_step(net, Objective(loss, l2), xn.SGD(1.0, momentum=0.0))
        for rows in slices:
            value, carry = step.on_rows(step.start, batch, rows, (step.start,))
            twin = net.clone()
            step.publish(carry, twin)
            yield float(value), {k: to_numpy(before[k]) - to_numpy(a) for k, a in twin.params.items()}


@pytest.mark.parametrize("kernels", ["auto", "generic", "reference"])
@pytest.mark.parametrize(("name", "reduction", "weighted", "l2"), [
    *((name, "mean", True, 0.3) for name in BATCHED),
    ("softmax cross-entropy, classes", "mean", True, 0.0),
    ("softmax cross-entropy, classes", "mean", False, 0.3),
    ("softmax cross-entropy, classes", "sum", True, 0.3),
])  # fmt: skip
def test_the_gradients_of_the_batches_make_that_of_all_rows(
    lib, rng, monkeypatch, kernels, name, reduction, weighted, l2
):
    """In "mean" each times its share of the rows. The penalty comes once with each batch."""
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    make, prediction, target = BATCHED[name]
    x, y = data(target, rng)
    last = [xn.Sigmoid()] if prediction is cases.probabilities else []
    net, loss = plain(*last).initialize(lib.backend, "float64", seed=1), make(reduction=reduction)
    weights = rng.uniform(0.0, 3.0, size=N)
    weights[:5] = 0.0
    sample_weight, slices = weights if weighted else None, xn.data.minibatches(N, 5)
    ((whole, expected),) = steps_of(net, x, y, loss, [slice(0, N)], sample_weight, l2 * len(slices))
    parts = list(steps_of(net, x, y, loss, slices, sample_weight, l2))
    shares = [(s.stop - s.start) / N if reduction == "mean" else 1.0 for s in slices]
    assert sum(s * value for s, (value, _) in zip(shares, parts, strict=True)) == pytest.approx(whole, rel=1e-12)
    for key, g in expected.items():
        total = sum(s * grads[key] for s, (_, grads) in zip(shares, parts, strict=True))
        np.testing.assert_allclose(total, g, rtol=0, atol=1e-13 * max(1.0, np.abs(g).max()))


@pytest.mark.parametrize("batch_size", [None, 40, 10, 1])
def test_rare_rows_of_great_weight_count_as_much_in_small_batches(lib, rng, batch_size):
    """1% of yeses that weigh as much as all noes: at p = 1/2 they are in balance, and an epoch moves nothing."""
    n, rate = 200, 2.0**-40
    y = np.zeros((n, 1))
    y[rng.permutation(n)[: n // 100]] = 1.0
    weights = np.where(y[:, 0] == 1.0, 99.0, 1.0)
    net = xn.Sequential(xn.Dense(1, 1)).initialize(lib.backend, "float64", seed=0)
    loss, optimizer = xn.BinaryCrossEntropyWithLogits(), xn.SGD(rate, momentum=0.0)
    history = net.fit(np.zeros((n, 1)), y, loss=loss, optimizer=optimizer, batch_size=batch_size, sample_weight=weights)
    assert abs(float(net.params["0.bias"][0])) <= 1e-6 * rate * history.steps  # weights by batch: 0.49 of it at 1
    assert history["loss"] == pytest.approx([np.log(2)], rel=1e-9)


@pytest.mark.parametrize("factor", [1e-300, 3.0, 1e307])
def test_a_factor_of_all_weights_changes_nothing(lib, rng, factor):
    x, y = data(cases.classes, rng)
    weights = rng.uniform(0.0, 2.0, size=N)
    nets = [network(lib) for _ in range(2)]
    fit = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(0.1), "batch_size": 5, "epochs": 3, "l2": 0.3}
    one, other = (
        net.fit(x, y, sample_weight=w, **fit) for net, w in zip(nets, (weights, factor * weights), strict=True)
    )
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
    for key, a in nets[0].params.items():
        if key != "0.bias":  # its gradient is 0 but for rounding, before a BatchNorm
            lib.agrees(nets[1].params[key], lib.to_numpy(a), rtol=1e-11)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("reduction", "weights_over", "decay"), [
    ("mean", "fit", 0.1 * 0.5 / 2), ("mean", "batch", 0.0), ("sum", "fit", 0.1 * 0.5), ("sum", "batch", 0.1 * 0.5),
])  # fmt: skip
def test_a_batch_whose_weights_are_all_0_has_the_penalty_alone(
    lib, rng, monkeypatch, kernels, reduction, weights_over, decay
):
    """And where "mean" divides by the batch's weights not even that."""
    monkeypatch.setenv("XPNET_KERNELS", kernels)

    class Steps(xn.Callback):
        taken = ()

        def step_end(self, run):
            self.taken += ({k: lib.to_numpy(a).copy() for k, a in run.net.params.items()},)

    x, y = data(cases.classes, rng, n=4)
    net, steps, loss = plain().initialize(lib.backend, "float64", seed=1), Steps(), xn.SoftmaxCrossEntropy(reduction)
    loss.weights_over = weights_over
    fit = {"optimizer": xn.SGD(0.1, momentum=0.0), "batch_size": 2, "shuffle": False, "l2": 0.5}
    net.fit(x, y, loss=loss, sample_weight=[1.0, 2.0, 0.0, 0.0], callbacks=[steps], **fit)
    before, after = steps.taken
    for key, a in before.items():
        factor = 1.0 - decay if a.ndim == 2 else 1.0
        np.testing.assert_allclose(after[key], factor * a, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("optimizer", [xn.SGD, xn.Nesterov])
def test_a_step_gives_the_gradient_alone(lib, rng, monkeypatch, kernels, optimizer):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    x, y = data(cases.one_hot, rng)
    net, loss = network(lib), Objective(xn.SoftmaxCrossEntropy(), l2=0.3)
    with lib.backend.scope():
        step = training_step(net, loss, optimizer())
        for _ in range(2):
            net.set_params({k: lib.to_numpy(a) + 0.1 for k, a in net.params.items()})
            expected, grads = net.value_and_grad(x, y, xn.SoftmaxCrossEntropy(), l2=0.3)
            weights = xn.ops.join([net.params[name] for name in step.names])
            value, gradient = step.gradient(weights, Batch(lib.asarray(x), lib.asarray(y, "float64")))
            assert float(value) == pytest.approx(float(expected), rel=1e-12)
            for name, g in zip(step.names, xn.ops.split(gradient, step.shapes), strict=True):
                if name != "0.bias":  # 0 but for rounding
                    lib.agrees(g, lib.to_numpy(grads[name]), rtol=1e-11)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_the_loss_of_an_epoch_is_the_mean_over_all_weights(lib, rng, monkeypatch, kernels):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    x, y = data(cases.classes, rng, n=10)
    weights = np.array([0, 0, 0, 1, 2, 3, 0.5, 0, 1, 1])  # the first batch has none
    net = plain().initialize(lib.backend, "float64", seed=0)
    still = xn.SGD(1e-300, momentum=0.0)
    for l2 in (0.0, 0.2):
        whole, _ = net.value_and_grad(x, y, xn.SoftmaxCrossEntropy(), sample_weight=weights, l2=4 * l2)
        fit = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": still, "batch_size": 3, "l2": l2}
        for shuffle in (False, True):
            history = net.fit(x, y, shuffle=shuffle, sample_weight=weights, **fit)
            assert history["loss"] == pytest.approx([float(whole)], rel=1e-12)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
def test_two_fits_joined_by_slots_are_one(lib, rng, monkeypatch, kernels, optimizer):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    x, y = data(cases.classes, rng)
    loss = xn.SoftmaxCrossEntropy()
    settings = {"loss": loss, "batch_size": 5, "l2": 0.1}
    one, two = network(lib), network(lib)
    one.fit(x, y, optimizer=cases.OPTIMIZERS[optimizer](), epochs=5, **settings)
    first = two.fit(x, y, optimizer=cases.OPTIMIZERS[optimizer](), epochs=2, **settings)
    kept = {k: np.array(lib.to_numpy(a)) for k, a in first.slots.items() if k != "step"}
    last = two.fit(x, y, optimizer=cases.OPTIMIZERS[optimizer](), epochs=3, slots=first.slots, **settings)
    assert last.slots["step"] == 15
    for key, a in one.params.items():
        np.testing.assert_array_equal(lib.to_numpy(two.params[key]), lib.to_numpy(a))
    for key, a in kept.items():  # the earlier ones are as they were
        np.testing.assert_array_equal(lib.to_numpy(first.slots[key]), a)


def test_a_callback_sets_the_runs_rate_and_the_users_optimizer_is_as_it_was(lib, rng):
    class Halve(xn.Callback):
        def epoch_end(self, run):
            run.optimizer.learning_rate /= 2

    x, y = data(cases.classes, rng)
    loss, optimizer = xn.SoftmaxCrossEntropy(), xn.Adam(0.1)
    one, two = network(lib), network(lib)
    one.fit(x, y, loss=loss, optimizer=optimizer, epochs=3, callbacks=[Halve()], batch_size=None)
    assert optimizer.learning_rate == 0.1
    rates = [0.1, 0.05, 0.025]
    two.fit(x, y, loss=loss, optimizer=xn.Adam(lambda step: rates[step]), epochs=3, batch_size=None)
    for key, a in one.params.items():
        np.testing.assert_array_equal(lib.to_numpy(two.params[key]), lib.to_numpy(a))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_weight": np.ones(N - 1)}, r"fit: sample_weight has shape \(11,\), expected one number for each row"),
        ({"sample_weight": np.ones((N, 1))}, r"sample_weight has shape \(12, 1\), expected one number"),
        ({"sample_weight": np.zeros(N)}, "sample_weight is 0 everywhere, and some row must count"),
        ({"sample_weight": -np.ones(N)}, "must be finite and at least 0, got .* in row 0"),
        ({"sample_weight": np.full(N, np.nan)}, "must be finite and at least 0, got .* in row 0"),
        ({"l2": -1.0}, "l2 must be at least 0 and finite, got -1.0"),
        ({"l2": "a"}, "l2 must be at least 0 and finite, got 'a'"),
        ({"slots": {"step": 3}}, r"fit: slots has step; Adam\(\) keeps step, m, v"),
        ({"slots": {"step": 3, "m": np.zeros(3), "v": np.zeros(3)}}, r"slots has m of shape \(3,\), expected \("),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_lost(lib, rng, given, message):
    x, y = data(cases.classes, rng)
    net = network(lib)
    before = {k: lib.to_numpy(a).copy() for k, a in net.params.items()}
    with pytest.raises(ValueError, match=message):
        net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), **given)
    for key, a in before.items():
        np.testing.assert_array_equal(lib.to_numpy(net.params[key]), a)


def test_weights_too_large_for_float32_are_refused_without_a_warning(lib, rng):
    x, y = data(cases.classes, rng)
    net = plain().initialize(lib.backend, "float32")
    with pytest.raises(ValueError, match="sample_weight must be finite"):
        net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(), sample_weight=np.full(N, 1e300))


def test_weights_need_a_loss_of_terms(lib, rng):
    class Bare:
        def value_and_grad(self, prediction, target):
            return xn.MeanSquaredError().value_and_grad(prediction, target)

    x, y = data(cases.values, rng)
    with pytest.raises(TypeError, match=r"sample_weight needs a loss that derives from xn\.Loss, got .*Bare"):
        network(lib).fit(x, y, loss=Bare(), optimizer=xn.Adam(), sample_weight=np.ones(N))
    network(lib).fit(x, y, loss=Bare(), optimizer=xn.Adam(), l2=0.1)


def test_terms_of_another_shape_are_refused_with_weights_as_without(lib, rng):
    class Whole(xn.MeanSquaredError):
        def terms(self, prediction, target):
            terms, gradient = super().terms(prediction, target)
            return xn.ops.namespace(terms).sum(terms), gradient

    x, y = data(cases.values, rng)
    for weights in (None, np.ones(N)):
        with pytest.raises(ValueError, match=r"^Whole\(\): terms gave a loss of shape \(\) for a prediction of shape"):
            network(lib).value_and_grad(x, y, Whole(), sample_weight=weights)


def test_a_reduction_that_is_none_is_told_with_the_users_loss(lib, rng):
    x, y = data(cases.values, rng)
    loss = xn.MeanSquaredError()
    loss.reduction = "none"
    with pytest.raises(ValueError, match=r'^MeanSquaredError: reduction must be "mean" or "sum", got \'none\'$'):
        network(lib).fit(x, y, loss=loss, optimizer=xn.Adam())
