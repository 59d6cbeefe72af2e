"""State dicts of `torch.nn.Sequential`, read and written; on NumPy from a file that PyTorch wrote."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xpnet as xn
from support.golden_networks import FOLDER, numbers
from xpnet.files import load_torch, save_torch
from xpnet.files import safetensors as container

FILE = FOLDER / "torch-sequential.safetensors"  # of PyTorch 2.13.0 and safetensors 0.8.0
X = numbers(0, (3, 4))
PREDICTED = [  # by PyTorch in float32, in eval mode
    [0.4149959683418274, 0.5850040316581726],
    [0.400680273771286, 0.5993197560310364],
    [0.383402556180954, 0.6165974140167236],
]


def twin(dtype="float32", backend="numpy"):
    """The network that matches the file."""
    return xn.Sequential(
        xn.Dense(4, 3),
        xn.BatchNorm(3, momentum=0.9, eps=1e-5),
        xn.Tanh(),
        xn.Sequential(xn.Dense(3, 2), xn.Dropout(0.5)),
        xn.Softmax(),
    ).initialize(backend, dtype, seed=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_file_that_pytorch_wrote_gives_its_predictions(lib, dtype):
    net = twin(dtype).to(lib.backend)
    key = lib.to_numpy(net.state["3.1.key"])
    assert load_torch(net, FILE) is net
    lib.agrees(net.predict(X.astype(dtype)), np.array(PREDICTED, dtype), rtol=4e-7)
    np.testing.assert_array_equal(lib.to_numpy(net.params["0.weight"]), load_file(FILE)["0.weight"].T)
    np.testing.assert_array_equal(lib.to_numpy(net.state["1.var"]), load_file(FILE)["1.running_var"])
    np.testing.assert_array_equal(lib.to_numpy(net.state["3.1.key"]), key)


def test_what_is_written_back_is_what_was_read(lib, tmp_path):
    net = load_torch(twin().to(lib.backend), FILE)
    save_torch(net, tmp_path / "back.safetensors")
    back, theirs = load_file(tmp_path / "back.safetensors"), load_file(FILE)
    assert (theirs.pop("1.num_batches_tracked"), back.pop("1.num_batches_tracked")) == (42, 1)
    assert back.keys() == theirs.keys()
    for name, a in theirs.items():
        np.testing.assert_array_equal(back[name], a, strict=True)
    assert container.read(tmp_path / "back.safetensors")[1] == {"format": "pt"}


@pytest.mark.numpy_only
def test_statistics_as_they_start_count_as_no_batch(tmp_path):
    save_torch(twin(), tmp_path / "new.safetensors")
    assert load_file(tmp_path / "new.safetensors")["1.num_batches_tracked"] == 0


SPOILT = {
    "another program's": (lambda a: {"w": np.ones(3)}, "0.bias, 0.weight.* missing.* the state dict that matches"),
    "of a model with a Flatten before": (
        lambda a: {f"{int(k[0]) + 1}{k[1:]}": v for k, v in a.items()},
        r"0.bias, 0.weight, .* missing; it holds 2.bias, .*\n.* such as Flatten, put an empty Sequential\(\) into",
    ),
    "within a module": (
        lambda a: {f"net.{k}": v for k, v in a.items()},
        "it holds net.0.bias, .*\n.* save the state dict of the torch.nn.Sequential alone",
    ),
    "without a bias": (
        lambda a: {k: v for k, v in a.items() if k != "0.bias"},
        "0.bias missing; .*\n.* zeros for bias=False",
    ),
    "without a count": (lambda a: {k: v for k, v in a.items() if "tracked" not in k}, "1.num_batches_tracked missing"),
    "with a layer more": (
        lambda a: a | {"4.weight": np.ones(2, "f4")},
        "it holds 4.weight; expected the state dict that matches Sequential",
    ),
    "not transposed": (
        lambda a: a | {"0.weight": np.ones((4, 3), "f4")},
        r"0.weight has shape \(4, 3\), expected \(3, 4\)",
    ),
    "whole numbers": (lambda a: a | {"0.bias": np.ones(3, "i4")}, "0.bias has dtype int32, expected floating"),
    "NaN": (lambda a: a | {"0.bias": np.full(3, np.nan, "f4")}, "0.bias has entries that are NaN or infinite"),
    "beyond float32": (lambda a: a | {"0.bias": np.full(3, 1e300)}, "infinite in float32"),
    "a count that is none": (
        lambda a: a | {"1.num_batches_tracked": np.ones(2, "i8")},
        "1.num_batches_tracked is int64 of shape .2,., not an int64 of no axes",
    ),
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", SPOILT)
def test_a_file_that_does_not_match_is_refused_and_changes_nothing(tmp_path, kind):
    spoil, message = SPOILT[kind]
    net = twin()
    before = {k: a.copy() for k, a in (net.params | net.state).items()}
    save_file(spoil(load_file(FILE)), tmp_path / "net.safetensors")
    with pytest.raises(
        xn.FormatError, match=f"^{re.escape(str(tmp_path))}/net.safetensors cannot be loaded: .*{message}"
    ):
        load_torch(net, tmp_path / "net.safetensors")
    for name, a in (net.params | net.state).items():
        np.testing.assert_array_equal(a, before[name])


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floating_point_is_converted(tmp_path, dtype):
    arrays = {k: a.astype(dtype) if a.dtype.kind == "f" else a for k, a in load_file(FILE).items()}
    save_file(arrays, tmp_path / "net.safetensors")
    again, net = load_torch(twin(), tmp_path / "net.safetensors"), load_torch(twin(), FILE)
    for name, a in net.params.items():  # eighths, which all of them hold
        np.testing.assert_array_equal(again.params[name], a, strict=True)


@pytest.mark.numpy_only
@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02", b""])
def test_a_file_of_torch_save_is_refused_with_what_to_do(tmp_path, start):
    (tmp_path / "net.pt").write_bytes(start + bytes(99 if start else 0))
    with pytest.raises(xn.FormatError) as caught:
        load_torch(twin(), tmp_path / "net.pt")
    assert any("save_file(model.state_dict(), path) writes" in note for note in caught.value.__notes__)
    assert any("torch.load(path, weights_only=True)" in note for note in caught.value.__notes__)


@pytest.mark.numpy_only
def test_a_negative_variance_is_refused_and_changes_nothing(tmp_path):
    arrays, net = load_file(FILE), twin()
    save_file(arrays | {"1.running_var": -arrays["1.running_var"]}, tmp_path / "net.safetensors")
    before = net.params
    with pytest.raises(xn.FormatError, match=r"1\.running_var has entries below 0"):
        load_torch(net, tmp_path / "net.safetensors")
    assert all(net.params[name] is a for name, a in before.items())


@pytest.mark.numpy_only
def test_an_empty_sequential_stands_for_a_layer_that_torch_alone_has(tmp_path):
    arrays = {f"{int(k[0]) + 1}{k[1:]}": a for k, a in load_file(FILE).items()}  # after a Flatten
    save_file(arrays, tmp_path / "net.safetensors")
    net = xn.Sequential(xn.Sequential(), *twin().layers).initialize(seed=1)
    load_torch(net, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(net.predict(X.astype("f4")), load_torch(twin(), FILE).predict(X.astype("f4")))


class Scale(xn.Layer):
    def initial_params(self, rng):
        return {"scale": np.ones(1)}

    def forward(self, x, training=False):
        return x * self.params["scale"], x

    def backward(self, dy, cache):
        return dy * self.params["scale"], {"scale": (dy * cache).sum(keepdims=True)}


@pytest.mark.numpy_only
def test_a_layer_that_pytorch_has_not_is_refused(tmp_path):
    net = xn.Sequential(xn.Dense(4, 3), Scale()).initialize()
    for exchange in (load_torch, save_torch):
        with pytest.raises(TypeError, match=r"layer 1, Scale\(\), has arrays for which PyTorch has no names"):
            exchange(net, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="initialize"):
        load_torch(xn.Sequential(xn.Dense(4, 3)), FILE)


@pytest.mark.torch_only
def test_pytorch_and_xpnet_predict_the_same_both_ways(tmp_path):
    import safetensors.torch
    import torch

    def model():
        return torch.nn.Sequential(
            torch.nn.Linear(6, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.Sequential(torch.nn.Sigmoid(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 5)),
            torch.nn.LeakyReLU(),
            torch.nn.ELU(),
            torch.nn.ReLU(),
            torch.nn.Linear(5, 4),
            torch.nn.Tanh(),
            torch.nn.Softmax(dim=1),
        ).double()

    net = xn.Sequential(
        xn.Dense(6, 8),
        xn.BatchNorm(8, momentum=0.9, eps=1e-5),
        xn.Sequential(xn.Sigmoid(), xn.Dropout(0.3), xn.Dense(8, 5)),
        xn.LeakyReLU(0.01),
        xn.ELU(1.0),
        xn.ReLU(),
        xn.Dense(5, 4),
        xn.Tanh(),
        xn.Softmax(),
    ).initialize("torch", "float64")
    torch.manual_seed(0)
    x = torch.randn(50, 6, dtype=torch.float64)
    theirs = model()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    for _ in range(5):  # so that statistics and parameters are none of the starting ones
        optimizer.zero_grad()
        theirs(x)[:, 0].sum().backward()
        optimizer.step()
    theirs.eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    load_torch(net, tmp_path / "theirs.safetensors")
    torch.testing.assert_close(net.predict(x), theirs(x).detach(), rtol=1e-12, atol=1e-14)

    save_torch(net, tmp_path / "ours.safetensors")
    again = model()
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "ours.safetensors"))
    again.eval()
    torch.testing.assert_close(again(x), theirs(x), rtol=0, atol=0)


@pytest.mark.numpy_only
def test_names_that_lead_nowhere_are_refused(tmp_path):
    net = twin()
    for exchange in (load_torch, save_torch):
        with pytest.raises(
            ValueError, match=r"names has '5', but the network has no layer of that name; it has 0, 1, 2, 3\.0"
        ):
            exchange(net, FILE if exchange is load_torch else tmp_path / "net.st", {"5": "a"})
        with pytest.raises(ValueError, match="names gives two layers one name"):
            exchange(net, FILE if exchange is load_torch else tmp_path / "net.st", {"0": "a", "3.0": "a"})
        with pytest.raises(
            TypeError, match=r"names must be a dict of our names to torch's, such as \{.0.: .wte.\}, got a list"
        ):
            exchange(net, FILE if exchange is load_torch else tmp_path / "net.st", ["a"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.numpy_only
def test_a_layer_within_takes_the_longest_name_that_fits(tmp_path):
    save_torch(twin(), tmp_path / "net.st", {"0": "first", "3": "block", "3.0": "last"})
    save_torch(twin(), tmp_path / "two.st", {"3": "block"})
    assert {name.partition(".")[0] for name in load_file(tmp_path / "net.st")} == {"first", "1", "last"}
    assert "block.0.weight" in load_file(tmp_path / "two.st")


@pytest.mark.torch_only
def test_a_network_of_gpt_2s_shape_made_in_pytorch_predicts_the_same(tmp_path):
    import safetensors.torch
    import torch
    from torch import nn

    vocabulary, length, features, heads, layers = 29, 12, 16, 4, 4

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(features), nn.LayerNorm(features)
            self.attn = nn.MultiheadAttention(features, heads, batch_first=True)
            wide = nn.Linear(features, 4 * features), nn.GELU(approximate="tanh"), nn.Linear(4 * features, features)
            self.mlp = nn.Sequential(*wide)

        def forward(self, x):
            a = self.ln_1(x)
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            x = x + self.attn(a, a, a, attn_mask=mask, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocabulary, features), nn.Embedding(length, features)
            self.h = nn.ModuleList([Block() for _ in range(layers)])
            self.ln_f, self.lm_head = nn.LayerNorm(features), nn.Linear(features, vocabulary)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            for block in self.h:
                x = block(x)
            return self.lm_head(self.ln_f(x))

    def block():
        attention = xn.LayerNorm(features), xn.MultiHeadAttention(features, heads, causal=True)
        wide = xn.Dense(features, 4 * features), xn.GELU(approximate=True), xn.Dense(4 * features, features)
        return xn.Residual(*attention), xn.Residual(xn.LayerNorm(features), *wide)

    net = xn.Sequential(
        xn.Embedding(vocabulary, features),
        xn.PositionalEmbedding(length, features),
        *[each for _ in range(layers) for each in block()],
        xn.LayerNorm(features),
        xn.Dense(features, vocabulary),
    ).initialize("torch", "float64")
    names = {"0": "wte", "1": "wpe", "10": "ln_f", "11": "lm_head"}
    for i in range(layers):
        first, second = f"{2 + 2 * i}", f"{3 + 2 * i}"
        names |= {f"{first}.0": f"h.{i}.ln_1", f"{first}.1": f"h.{i}.attn", f"{second}.0": f"h.{i}.ln_2"}
        names |= {f"{second}.1": f"h.{i}.mlp.0", f"{second}.3": f"h.{i}.mlp.2"}
    torch.manual_seed(0)
    model = Model().double().eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.st")
    load_torch(net, tmp_path / "model.st", names)
    ids = torch.randint(vocabulary, (3, 10))
    with torch.no_grad():
        torch.testing.assert_close(net.predict(ids), model(ids), rtol=0, atol=1e-12)
        net.initialize("torch", "float64", seed=5, fresh=True)
        save_torch(net, tmp_path / "back.st", names)
        model.load_state_dict(safetensors.torch.load_file(tmp_path / "back.st"))
        torch.testing.assert_close(net.predict(ids), model(ids), rtol=0, atol=1e-12)


@pytest.mark.torch_only
def test_a_convolutional_network_made_in_pytorch_predicts_the_same(tmp_path):
    import safetensors.torch
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, (3, 2), groups=2, padding=(1, 0)), nn.GroupNorm(4, 8), nn.SiLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * 2 * 1, 5),
    ).double()  # fmt: skip
    net = xn.Sequential(
        xn.Conv2d(2, 6, 3, padding=1, stride=2), xn.BatchNorm(6, 0.9, 1e-5), xn.ReLU(), xn.MaxPool2d(2),
        xn.Conv2d(6, 8, (3, 2), groups=2, padding=(1, 0)), xn.GroupNorm(4, 8), xn.SiLU(), xn.AveragePool2d(2),
        xn.Flatten(), xn.Dense(8 * 2 * 1, 5),
    ).initialize("torch", "float64")  # fmt: skip
    torch.manual_seed(0)
    model(torch.randn(9, 2, 17, 14, dtype=torch.float64))  # statistics of a batch
    model.eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.st")
    load_torch(net, tmp_path / "model.st")
    x = torch.randn(3, 2, 17, 14, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net.predict(x), model(x), rtol=0, atol=1e-12)
        save_torch(net, tmp_path / "back.st")
        model.load_state_dict(safetensors.torch.load_file(tmp_path / "back.st"))
        torch.testing.assert_close(net.predict(x), model(x), rtol=0, atol=1e-12)
