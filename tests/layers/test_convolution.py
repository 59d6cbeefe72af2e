"""Convolutions and pooling: against their formulas, PyTorch's autograd and one another. Axes: N batch, C channels."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import settings

import xpnet as xn
from support.cases import ready
from support.layers import assert_derivatives

SETTINGS = 200  # drawn for each layer, to hold it against PyTorch
FEW = max(2, settings().max_examples // 10)  # against formulas in Python
CONVOLUTIONS = {1: xn.Conv1d, 2: xn.Conv2d}
MAXIMA = {1: xn.MaxPool1d, 2: xn.MaxPool2d}
MEANS = {1: xn.AveragePool1d, 2: xn.AveragePool2d}


def padded(sizes, padding, reaches, strides):
    """Along each axis the padding before and behind."""
    if padding != "same":
        return [(p, p) for p in padding]
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reaches, strides, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def drawn_convolution(rng, axes):
    """A convolution and the sizes of an image for it: odd ones, strides over the kernel, padding over the size."""
    groups = int(rng.integers(1, 4))
    while True:
        kernel, stride, dilation, padding, sizes = (
            tuple(map(int, rng.integers(low, high, axes))) for low, high in ((1, 5), (1, 6), (1, 4), (0, 6), (1, 10))
        )
        reaches = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = "same" if rng.random() < 0.3 else padding
        if padding == "same" or all(n + 2 * p >= r for n, p, r in zip(sizes, padding, reaches, strict=True)):
            break
    channels = [groups * int(n) for n in rng.integers(1, 3, 2)]
    return CONVOLUTIONS[axes](*channels, kernel, stride, padding, dilation, groups), sizes


def drawn_pool(rng, axes, kinds):
    """A pool, its padding at most half a window as PyTorch has it, and the sizes of an image for it."""
    kernel, stride, sizes = (tuple(map(int, rng.integers(low, high, axes))) for low, high in ((1, 5), (1, 6), (4, 10)))
    return kinds[axes](kernel, stride, tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)), sizes


# --- the formulas -----------------------------------------------------------------------------------------------------


def positions(layer, sizes):
    """For each output the entries of x that it sees, as ({tap: position}, its own index)."""
    kernel, stride, dilation = (
        np.broadcast_to(value, len(sizes)) for value in (layer.kernel_size, layer.stride, getattr(layer, "dilation", 1))
    )
    reaches = dilation * (kernel - 1) + 1
    padding = layer.padding if layer.padding == "same" else list(np.broadcast_to(layer.padding, len(sizes)))
    around = padded(sizes, padding, reaches, stride)
    counts = [(n + sum(p) - r) // s + 1 for n, p, r, s in zip(sizes, around, reaches, stride, strict=True)]
    for o in itertools.product(*map(range, counts)):
        seen = {}
        for i in itertools.product(*map(range, kernel)):
            at = tuple(int(s * a + d * b - p[0]) for s, a, d, b, p in zip(stride, o, dilation, i, around, strict=True))
            if all(0 <= j < n for j, n in zip(at, sizes, strict=True)):
                seen[i] = at
        yield o, seen


def convolved(layer, weight, bias, x):
    """y of a convolution, by its formula."""
    found, (n, _, *sizes) = {}, x.shape
    inputs, outputs = weight.shape[1], layer.out_channels // layer.groups
    for o, seen in positions(layer, sizes):
        y = np.tile(bias, (n, 1))
        for i, at in seen.items():
            for c in range(layer.out_channels):
                start = c // outputs * inputs
                y[:, c] += x[(slice(None), slice(start, start + inputs), *at)] @ weight[(c, slice(None), *i)]
        found[o] = y
    return as_image(found)


def pooled(layer, x, function):
    return as_image(
        {
            o: function(np.stack([x[(slice(None), slice(None), *at)] for at in seen.values()]), axis=0)
            for o, seen in positions(layer, x.shape[2:])
        }
    )


def as_image(found):
    y = np.stack(list(found.values()), axis=-1)
    return y.reshape(*y.shape[:2], *(n + 1 for n in max(found)))


@pytest.mark.parametrize("axes", [1, 2])
def test_a_convolution_is_its_formula(lib, axes):
    rng = np.random.default_rng(axes)
    for _ in range(FEW):
        layer, sizes = drawn_convolution(rng, axes)
        ready(layer, lib)
        x = rng.normal(size=(2, layer.in_channels, *sizes))
        y, _ = layer.forward(lib.asarray(x))
        lib.agrees(y, convolved(layer, *(lib.to_numpy(layer.params[name]) for name in ("weight", "bias")), x))
        assert tuple(y.shape) == layer.output_shape(x.shape) == (2, *layer.output_shape(x.shape[1:]))


@pytest.mark.parametrize("axes", [1, 2])
def test_pools_are_their_formulas(lib, axes):
    rng = np.random.default_rng(axes)
    for kinds, function in ((MAXIMA, np.max), (MEANS, np.mean)):
        for padding in (*range(FEW // 2), "same"):
            layer, sizes = drawn_pool(rng, axes, kinds)
            layer = type(layer)(layer.kernel_size, layer.stride, "same") if padding == "same" else layer
            x = rng.normal(size=(2, 3, *sizes))
            y, _ = layer.forward(lib.asarray(x))
            lib.agrees(y, pooled(layer, x, function))
            assert tuple(y.shape) == layer.output_shape(x.shape)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("kind", ["convolution", "maximum", "mean"])
def test_derivatives_are_those_of_the_forward(lib, kind, axes):
    rng = np.random.default_rng(3 + axes)
    for _ in range(FEW // 2):
        if kind == "convolution":
            layer, sizes = drawn_convolution(rng, axes)
            sizes = [min(n, 5) if layer.padding == "same" else n for n in sizes]
        else:
            layer, sizes = drawn_pool(rng, axes, MAXIMA if kind == "maximum" else MEANS)
        x = rng.normal(size=(1, getattr(layer, "in_channels", 2), *sizes))
        assert_derivatives(ready(layer, lib), lib, x)


def test_the_first_of_several_maxima_gets_the_gradient_and_overlapping_windows_add_up(lib):
    layer = xn.MaxPool2d(2, 1)
    x = np.array([[1.0, 3.0, 3.0], [3.0, 3.0, 3.0], [0.0, 0.0, 3.0]])[None, None]
    y, cache = layer.forward(lib.asarray(x))
    dx, _ = layer.backward(lib.asarray(np.array([[1.0, 2.0], [4.0, 8.0]])[None, None]), cache)
    np.testing.assert_array_equal(lib.to_numpy(y), np.full((1, 1, 2, 2), 3.0))
    np.testing.assert_array_equal(lib.to_numpy(dx)[0, 0], [[0.0, 3.0, 0.0], [4.0, 8.0, 0.0], [0.0, 0.0, 0.0]])


def test_same_padding_has_the_odd_zero_at_the_end(lib):
    """As ONNX's SAME_UPPER and TensorFlow, and with strides, too: ceil(size / stride) outputs."""
    layer = xn.Conv1d(1, 1, 4, stride=3, padding="same")
    xn.Sequential(layer).initialize(lib.backend, "float64")
    layer.params = {"weight": lib.asarray(np.array([[[1.0, 10.0, 100.0, 1000.0]]])), "bias": lib.asarray(np.zeros(1))}
    y, _ = layer.forward(lib.asarray(np.arange(1.0, 8.0)[None, None]))  # 0 1 2 3 4 5 6 7 0 0
    np.testing.assert_array_equal(lib.to_numpy(y)[0, 0], [3210.0, 6543.0, 76.0])


def test_a_mean_counts_real_entries_alone(lib):
    y, _ = xn.AveragePool2d(3, 2, 1).forward(lib.asarray(np.ones((1, 2, 4, 5))))
    np.testing.assert_allclose(lib.to_numpy(y), np.ones((1, 2, 2, 3)), rtol=1e-15)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def theirs(torch, layer, x, params):
    """What PyTorch makes of x."""
    f = torch.nn.functional
    if isinstance(layer, xn.GroupNorm):
        return f.group_norm(x, layer.groups, params["gamma"], params["beta"], layer.eps)
    if type(layer) in CONVOLUTIONS.values():
        reaches = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        around = padded(x.shape[2:], layer.padding, reaches, layer.stride)
        x = f.pad(x, [p for each in reversed(around) for p in each])
        conv = getattr(f, f"conv{layer.axes}d")
        return conv(x, params["weight"], params["bias"], layer.stride, 0, layer.dilation, layer.groups)
    given = layer.kernel_size, layer.stride, layer.padding
    if type(layer) in MAXIMA.values():
        return getattr(f, f"max_pool{layer.axes}d")(x, *given)
    return getattr(f, f"avg_pool{layer.axes}d")(x, *given, count_include_pad=False)


def drawn_norm(rng, axes):
    groups = int(rng.integers(1, 4))  # of more than one entry, which PyTorch refuses
    return xn.GroupNorm(groups, groups * int(rng.integers(1, 4)), eps=0.01), tuple(map(int, rng.integers(2, 6, axes)))


DRAWN = {
    "convolution": drawn_convolution,
    "maximum": lambda rng, axes: drawn_pool(rng, axes, MAXIMA),
    "mean": lambda rng, axes: drawn_pool(rng, axes, MEANS),
    "group norm": drawn_norm,
}


@pytest.mark.torch_only
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("kind", DRAWN)
def test_values_and_gradients_are_pytorchs(lib, kind, axes):
    import torch

    rng = np.random.default_rng(axes)
    for number in range(SETTINGS):
        layer, sizes = DRAWN[kind](rng, axes)
        ready(layer, lib, seed=number)
        channels = getattr(layer, "in_channels", getattr(layer, "channels", 2))
        x = rng.normal(size=(int(rng.integers(1, 4)), channels, *sizes))
        x = torch.tensor(np.round(x) if number % 2 else x, requires_grad=True)  # with maxima that are several, too
        params = {name: a.clone().requires_grad_() for name, a in layer.params.items()}
        expected = theirs(torch, layer, x, params)
        y, cache = layer.forward(x.detach(), training=True)
        dy = torch.tensor(rng.normal(size=tuple(expected.shape)))
        expected.backward(dy)
        dx, grads = layer.backward(dy, cache)
        pairs = {"y": (y, expected), "x": (dx, x.grad)} | {k: (g, params[k].grad) for k, g in grads.items()}
        for name, (ours, other) in pairs.items():
            np.testing.assert_allclose(ours, other.detach(), rtol=0, atol=1e-10, err_msg=f"{layer!r}, {sizes}: {name}")


# --- what they take ---------------------------------------------------------------------------------------------------


def image(*shape):
    return lambda layer: xn.Sequential(layer).initialize("numpy").predict(np.ones(shape))


@pytest.mark.numpy_only
@pytest.mark.parametrize(("act", "message"), [
    (lambda: xn.Conv2d(3, 4, 3, groups=2), "^Conv2d: groups must divide in_channels, 3, got 2$"),
    (lambda: xn.Conv2d(4, 3, 3, groups=2), "^Conv2d: groups must divide out_channels, 3, got 2$"),
    (lambda: xn.GroupNorm(3, 4), "^GroupNorm: groups must divide channels, 4, got 3$"),
    (lambda: xn.Conv2d(3, 4, (3, 3, 3)), r"^Conv2d: kernel_size must .* number, or 2 of them, got \(3, 3, 3\)$"),
    (lambda: xn.Conv1d(3, 4, 3, stride=(1, 2)), r"^Conv1d: stride must be a whole number, or 1 of them, got \(1, 2\)$"),
    (lambda: xn.Conv2d(3, 4, 0), "^Conv2d: kernel_size must be a whole number of at least 1, got 0$"),
    (lambda: xn.Conv2d(3, 4, 3, padding="full"), '^Conv2d: padding must be "same", "valid" or whole .* got \'full\'$'),
    (lambda: xn.MaxPool2d(2, padding=(1, 2)), r"^MaxPool2d: padding must be less than kernel_size, .* got \(1, 2\)$"),
    (lambda: image(2, 9, 9, 3)(xn.Conv2d(3, 4, 3)), r"last, \(n, height, width, 3\); put Transpose\(3, 1, 2\) before"),
    (lambda: image(2, 9, 3)(xn.Conv1d(3, 4, 3)), r"are last, \(n, length, 3\); put Transpose\(2, 1\) before it$"),
    (lambda: image(2, 9, 9, 3)(xn.GroupNorm(1, 3)), r"channels are last, .*; put Transpose\(3, 1, 2\) before it$"),
    (lambda: image(2, 9, 9, 3)(xn.BatchNorm(3)), r"channels are last, .*; put Transpose\(3, 1, 2\) before it$"),
    (lambda: image(2, 9, 9)(xn.Conv2d(1, 4, 3)), r"got \('N', 9, 9\): for one channel give x\[:, None\]$"),
    (lambda: image(2, 81)(xn.Conv2d(1, 4, 3)), r"got \('N', 81\): put Reshape\(1, height, width\) before it$"),
    (lambda: image(2, 81)(xn.MaxPool2d(2)), r"got \('N', 81\): put Reshape\(channels, height, width\) before it$"),
    (lambda: image(2, 4, 9, 9)(xn.Conv2d(3, 4, 3)), r"expected .* \(n, 3, height, width\), got \('N', 4, 9, 9\)$"),
    (lambda: image(2, 3, 9, 2)(xn.Conv2d(3, 4, (3, 5), padding=1)), "5 does not fit into 2 entries with 1 of padding"),
    (lambda: image(2, 3, 9, 4)(xn.Conv2d(3, 4, 3, dilation=2)), "size 3 and dilation 2, 5 wide, does not fit into 4"),
    (lambda: image(2, 3, 1)(xn.AveragePool1d(2)), 'fit into 1 entries .*; use a smaller kernel, or padding="same"$'),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_remedy(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.numpy_only
def test_the_remedies_work():
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3))
    net = xn.Sequential(xn.Transpose(3, 1, 2), xn.Conv2d(3, 4, 3), xn.GlobalAveragePool()).initialize("numpy")
    assert net.predict(x).shape == (2, 4)
    net = xn.Sequential(xn.Reshape(1, 9, 9), xn.Conv2d(1, 4, 3)).initialize("numpy")
    assert net.predict(np.ones((2, 81))).shape == (2, 4, 7, 7)


@pytest.mark.numpy_only
@pytest.mark.parametrize("layer", [
    xn.Conv2d(2, 4, (3, 2), (2, 1), "same", 2, 2, trainable=False, initializer="he_uniform"),
    xn.Conv1d(2, 4, 3, padding=(1,)),
    xn.MaxPool2d((2, 3)),
    xn.AveragePool1d(3, stride=2, padding=1),
    xn.GroupNorm(2, 4, trainable=False),
    xn.Reshape(2, -1),
    xn.Transpose(2, 1),
], ids=repr)  # fmt: skip
def test_layers_are_saved_and_loaded(tmp_path, layer):
    net = xn.Sequential(layer).initialize("numpy", seed=3)
    net.save(tmp_path / "net")
    twin = xn.load(tmp_path / "net")
    assert repr(twin) == repr(net)
    assert twin.layers[0].trainable == layer.trainable
    for name, a in net.params.items():
        np.testing.assert_array_equal(a, twin.params[name])


# --- memory and speed -------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
@pytest.mark.parametrize(("layer", "size"), [
    (xn.Conv2d(16, 32, 3, padding=1), 16),
    (xn.Conv2d(16, 16, 5, padding="same"), 20),
    (xn.Conv2d(8, 32, 3, stride=2, padding=1), 24),
    (xn.Conv2d(3, 48, 8, stride=8), 32),
    (xn.Conv2d(32, 32, 3, padding=1, groups=32), 16),
    (xn.Conv1d(16, 32, 9, padding="same"), 256),
], ids=repr)  # fmt: skip
def test_a_convolution_works_in_at_most_twice_its_activations(layer, size):
    """tracemalloc counts the bytes of NumPy's arrays: the peak beyond what was there before and is handed back."""
    xn.Sequential(layer).initialize("numpy")
    x = np.ones((layer.in_channels, *[size] * layer.axes, 32), np.float32)
    x = np.moveaxis(x, -1, 0)  # the batch contiguous in memory, as layers hand it on

    def beyond(function, *arguments):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        made = function(*arguments)
        return made, tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        (y, cache), forward = beyond(layer.forward, x)
        (dx, _), backward = beyond(layer.backward, y, cache)
    finally:
        tracemalloc.stop()
    both = x.nbytes + y.nbytes
    assert forward - y.nbytes < 2 * both
    assert backward - dx.nbytes < 2 * both


@pytest.mark.numpy_only
def test_activations_keep_the_batch_contiguous():
    net = xn.Sequential(
        *(xn.Conv2d(3, 4, 3), xn.BatchNorm(4), xn.ReLU(), xn.MaxPool2d(2), xn.GroupNorm(2, 4), xn.AveragePool2d(2)),
        *(xn.Flatten(), xn.Dense(36, 2)),
    ).initialize("numpy")
    x = np.ones((6, 3, 14, 14), np.float32)
    for layer in net.layers:
        x, _ = layer.forward(x)
        assert x.strides[0] == x.itemsize


# --- networks ---------------------------------------------------------------------------------------------------------


def cnn():
    return xn.Sequential(
        *(xn.Conv2d(2, 4, 3, padding=1), xn.BatchNorm(4), xn.ReLU()),
        *(xn.Conv2d(4, 6, 3, stride=2, padding=1), xn.BatchNorm(6), xn.ReLU()),
        *(xn.Conv2d(6, 6, 3, padding=1, groups=2), xn.BatchNorm(6), xn.ReLU()),
        *(xn.MaxPool2d(2), xn.Flatten(), xn.Dense(24, 3)),
    )


def twenty_steps(backend):
    rng = np.random.default_rng(0)
    net = cnn().initialize(backend, "float64", seed=1)
    x, y = rng.normal(size=(12, 2, 8, 8)), rng.integers(3, size=12)
    history = net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=20, shuffle=False)
    return net, history["loss"], x, y


def test_twenty_steps_of_adam_are_numpys(lib):
    net, losses, _, _ = twenty_steps(lib.backend)
    expected, expected_losses, _, _ = twenty_steps("numpy")
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-10)
    for name, a in net.params.items():
        np.testing.assert_allclose(lib.to_numpy(a), expected.params[name], rtol=0, atol=1e-10)


@pytest.mark.torch_only
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_twenty_steps_of_adam_are_pytorchs(backend):
    import torch

    nn, start = torch.nn, cnn().initialize("numpy", "float64", seed=1).params
    modules = []
    for layer in cnn().layers:
        if isinstance(layer, xn.Conv2d):
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            module = nn.Conv2d(*sizes, groups=layer.groups)
        elif isinstance(layer, xn.BatchNorm):
            module = nn.BatchNorm2d(layer.features, eps=layer.eps)
        else:
            module = {xn.ReLU: nn.ReLU, xn.Flatten: nn.Flatten}.get(type(layer), lambda: None)()
        if isinstance(layer, xn.MaxPool2d):
            module = nn.MaxPool2d(layer.kernel_size)
        modules.append(nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, xn.Dense) else module)
    model = nn.Sequential(*modules).double()
    names = {"gamma": "weight", "beta": "bias"}
    theirs = {name: model.get_parameter(f"{i}.{names.get(key, key)}") for name in start for i, key in [name.split(".")]}
    with torch.no_grad():
        for name, a in theirs.items():
            a.copy_(torch.tensor(start[name].T if name == "11.weight" else start[name]))
    for i in (0, 3, 6):  # under batch norm a bias has gradient 0, in PyTorch but for rounding
        modules[i].bias.requires_grad_(False)

    net, losses, x, y = twenty_steps(backend)
    optimizer = torch.optim.Adam([a for a in model.parameters() if a.requires_grad], lr=0.01)
    for value in losses:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y))
        loss.backward()
        optimizer.step()
        assert abs(float(loss.detach()) - value) < 1e-10
    for name, a in theirs.items():
        expected = (a.T if name == "11.weight" else a).detach()
        np.testing.assert_allclose(net.params[name], expected, rtol=0, atol=1e-10)


def test_a_bias_before_batch_norm_of_its_channels_has_gradient_0(lib, rng):
    net = xn.Sequential(xn.Conv1d(1, 2, 2), xn.BatchNorm(2), xn.Tanh()).initialize(lib.backend, "float64")
    x = lib.asarray(rng.normal(size=(3, 1, 4)))
    y, cache = net.forward(x, training=True)
    _, grads = net.backward(lib.asarray(rng.normal(size=y.shape)), cache)
    for name, g in grads.items():
        assert np.any(lib.to_numpy(g)) == (name != "0.bias")
    assert max(xn.check_gradients(net, x).values()) < 1e-6
    assert cnn().idle_parameters([4] * 10 + [2, 2]) == ["6.bias", "3.bias", "0.bias"]
    pooled = xn.Sequential(xn.Conv2d(2, 3, 3), xn.MaxPool2d(2), xn.GlobalAveragePool(), xn.Dense(3, 2), xn.BatchNorm(2))
    assert pooled.idle_parameters() == ["3.bias", "0.bias"]


def test_a_frozen_convolution_stays_and_passes_the_gradient_on(lib, rng):
    net = xn.Sequential(
        xn.Conv1d(1, 2, 2, padding=1), xn.Tanh(), xn.Conv1d(2, 2, 2, trainable=False), xn.Flatten(), xn.Dense(10, 2)
    ).initialize(lib.backend, "float64")
    before = {name: lib.to_numpy(a).copy() for name, a in net.params.items()}
    x, y = rng.normal(size=(8, 1, 5)), np.arange(8) % 2
    net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=2)
    for name, a in net.params.items():
        assert np.array_equal(lib.to_numpy(a), before[name]) == name.startswith("2.")


@pytest.mark.parametrize("size", [1, 3])
def test_one_image_is_a_batch_to_train_batch_norm_on_where_it_has_entries_enough(lib, rng, size):
    net = xn.Sequential(xn.Residual(xn.Conv2d(2, 2, 1), xn.BatchNorm(2)), xn.Flatten(), xn.Dense(2 * size * size, 2))
    net.initialize(lib.backend)
    x, y = rng.normal(size=(5, 2, size, size)), np.arange(5) % 2
    how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(), "batch_size": 2}
    if size > 1:
        assert len(net.fit(x, y, **how)["loss"]) == 1
    else:
        with pytest.raises(
            ValueError, match=r"5 rows leave a batch of 1 for layer 0\.1, BatchNorm\(2\): .* least 2 rows"
        ):
            net.fit(x, y, **how)


@pytest.mark.jax_only
def test_a_cnn_can_be_traced_by_jit(lib, rng):
    import jax

    net = xn.Sequential(xn.Conv2d(2, 4, 3, 2, 1), xn.BatchNorm(4), xn.MaxPool2d(2), xn.Flatten(), xn.Dense(4, 3))
    net.initialize(lib.backend, "float64")
    x, dy = lib.asarray(rng.normal(size=(4, 2, 4, 4))), lib.asarray(rng.normal(size=(4, 3)))

    def both(x, dy):
        y, cache = net.forward(x, training=True)
        return y, net.backward(dy, cache)

    (y, (dx, grads)), (expected, (expected_dx, expected_grads)) = jax.jit(both)(x, dy), both(x, dy)
    lib.agrees(y, lib.to_numpy(expected))
    lib.agrees(dx, lib.to_numpy(expected_dx))
    for name, g in grads.items():
        lib.agrees(g, lib.to_numpy(expected_grads[name]))
    found = jax.jit(jax.grad(lambda x: (dy * net.forward(x, training=True)[0]).sum()))(x)
    lib.agrees(found, lib.to_numpy(dx))
