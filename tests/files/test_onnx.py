"""Networks as ONNX files, run under onnxruntime to the same predictions."""

import sys

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

import xpnet as xn
from support.cases import FEATURES, LAYERS, SEQUENCES, Scale, gpt, ready, tutorial_network
from xpnet import estimators

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
onnx_only = pytest.mark.onnx_only

# ours and theirs round in another order: float32's epsilon times the terms of the longest sum, and room; in float64
# ONNX keeps eps and alpha as float32, and its reference computes erf in it
TOLERANCE = {"float32": 1e-6, "float64": 6e-8}


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, x):
    """y, in float32 of onnxruntime, in float64, of which that lacks some operators, of ONNX's own reference."""
    if x.dtype == np.float64 or reference_only(path):
        from onnx.reference import ReferenceEvaluator

        (y,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    else:
        (y,) = session(path).run(None, {"x": x})
    return y


def reference_only(path):
    """Whether the outputs are float64, with integers as inputs."""
    import onnx

    return onnx.load(path).graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


def agree(net, path, features, scale=1.0):
    net.export_onnx(path)
    rng = np.random.default_rng(1)
    for n in (1, 2, 37):  # any number of rows
        x = (scale * rng.normal(size=(n, features))).astype(net.dtype)
        expected = net.predict(x)
        y = run(path, x)
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE[net.dtype])


@onnx_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if type(LAYERS[kind]()) is not Scale])
def test_every_layer_predicts_the_same_under_onnxruntime(tmp_path, kind, dtype):
    layer = ready(LAYERS[kind](), dtype=dtype)
    net = layer if isinstance(layer, xn.Sequential) else xn.Sequential(layer)
    net.assign_placed(xn.get_backend("numpy"), dtype, net.params, net.state)
    agree(net, tmp_path / "net.onnx", FEATURES)


@onnx_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [kind for kind in SEQUENCES if "one number" not in kind])  # a file says how many axes
def test_every_layer_of_sequences_does_for_any_length(tmp_path, kind, dtype):
    make, inputs = SEQUENCES[kind]
    net = xn.Sequential(make()).initialize(dtype=dtype)
    net.export_onnx(tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    for n, t in ((1, 1), (2, 5), (7, 3)):
        x = inputs(rng, n, t)
        x = x.astype("int64" if net.takes == "integers" else dtype)
        expected = net.predict(x)
        y = run(tmp_path / "net.onnx", x)
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE[dtype])


IMAGES = {
    "of any size": lambda: [xn.Conv2d(3, 4, 3, padding=1), xn.ReLU(), xn.Conv2d(4, 5, 3, 2), xn.GlobalAveragePool()],
    "same": lambda: [xn.Conv2d(3, 4, (3, 2), (2, 3), "same"), xn.GELU(), xn.MaxPool2d(3, 2, "same")],
    "dilated": lambda: [xn.Conv2d(3, 6, 3, 1, (2, 0), (2, 1), groups=3), xn.BatchNorm(6), xn.AveragePool2d(3, 2, 1)],
    "grouped": lambda: [xn.GroupNorm(3, 3), xn.MaxPool2d((2, 3), (2, 1), (1, 1)), xn.GELU(approximate=True)],
    "turned": lambda: [xn.Rescale(1 / 255, -0.5), xn.Transpose(2, 3, 1), xn.Dense(3, 2), xn.RMSNorm(2)],
    "as rows": lambda: [xn.Reshape(3, -1), xn.Conv1d(3, 4, 5, 3, 2), xn.AveragePool1d(4, 3), xn.MaxPool1d(2)],
}


@onnx_only
@pytest.mark.parametrize("kind", IMAGES)
def test_networks_of_images_do_for_any_size(tmp_path, kind):
    net = xn.Sequential(*IMAGES[kind]()).initialize(dtype="float64")
    net.export_onnx(tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    for shape in ((1, 3, 8, 8), (4, 3, 11, 7), (2, 3, 9, 12)):
        x = rng.normal(size=shape)
        np.testing.assert_allclose(run(tmp_path / "net.onnx", x), net.predict(x), rtol=0, atol=TOLERANCE["float64"])


@onnx_only
def test_the_file_tells_the_sizes_that_are_known(tmp_path):
    def shapes(net):
        net.initialize().export_onnx(tmp_path / "net.onnx")
        found = session(tmp_path / "net.onnx")
        return [(each.type, each.shape) for each in (*found.get_inputs(), *found.get_outputs())]

    cnn = xn.Sequential(xn.Conv2d(3, 4, 3), xn.Flatten())
    assert shapes(cnn) == [("tensor(float)", ["N", 3, "x2", "x3"]), ("tensor(float)", ["N", "y1"])]
    assert shapes(gpt(7, 5, 4, 2)) == [("tensor(int64)", ["N", "x1"]), ("tensor(float)", ["N", "y1", 7])]


@onnx_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_trained_network_predicts_the_same_under_onnxruntime(tmp_path, digits, dtype):
    x, y = digits
    net = tutorial_network().initialize(dtype=dtype)
    net.fit(x[:500], y[:500], loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=5)
    probable = xn.Sequential(net, xn.Softmax())
    probable.assign_placed(net.backend, dtype, probable.params, probable.state)
    agree(probable, tmp_path / "net.onnx", 64)


@onnx_only
def test_a_network_without_layers_gives_back_what_it_got(tmp_path):
    net = xn.Sequential(xn.Dropout(0.5), xn.Sequential()).initialize()
    agree(net, tmp_path / "net.onnx", 3)


@onnx_only
def test_the_file_says_any_number_of_rows(tmp_path):
    import onnx

    tutorial_network().initialize().export_onnx(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    (x,), (y,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (x, y)]
    assert shapes == [["N", 64], ["N", 10]]


@onnx_only
def test_a_network_too_large_for_the_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xpnet.files.onnx.SIZE_LIMIT", 100)
    with pytest.raises(ValueError, match="the parameters take 112 bytes; an ONNX file holds at most 100"):
        xn.Sequential(xn.Dense(6, 4)).initialize().export_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@onnx_only
@pytest.mark.parametrize("place", ["outside", "nested"])
def test_a_layer_of_ones_own_is_refused_by_name(tmp_path, place):
    layer = Scale(4) if place == "outside" else xn.Sequential(Scale(4))
    net = xn.Sequential(xn.Dense(4, 4), layer).initialize()
    name = r"1" if place == "outside" else r"1\.0"
    with pytest.raises(TypeError, match=rf"layer {name}, Scale\(4\), has a forward of its own, for which ONNX has no"):
        net.export_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Twice(xn.Sequential):
    def forward(self, x, training=False):
        return super().forward(super().forward(x)[0], training)


class Bent(xn.ReLU):
    def forward(self, x, training=False):
        return super().forward(x - 1.0, training)


@onnx_only
@pytest.mark.parametrize("layer", [Twice(xn.Dense(4, 4)), Bent()])
def test_a_subclass_with_ways_of_its_own_is_refused(tmp_path, layer):
    with pytest.raises(TypeError, match=r"of its own|of your own"):
        xn.Sequential(layer).initialize().export_onnx(tmp_path / "net.onnx")


@onnx_only
def test_a_network_that_is_not_initialized_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="initialize"):
        xn.Sequential(xn.Dense(4, 4)).export_onnx(tmp_path / "net.onnx")


def test_without_onnx_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"export_onnx needs the onnx package: pip install onnx$"):
        xn.Sequential(xn.Dense(4, 4)).initialize().export_onnx(tmp_path / "net.onnx")


# --- estimators -------------------------------------------------------------------------------------------------------

NUMBERS = np.random.default_rng(0).normal(size=(60, 5))
LABELS = {
    "two numbers": (NUMBERS[:, 0] > 0) * 3 - 1,
    "two words": np.where(NUMBERS[:, 0] > 0, "well", "ill"),
    "booleans": NUMBERS[:, 0] > 0,
    "three floats": np.digitize(NUMBERS[:, 0], [-0.5, 0.5]) * 2.0,
    "three words, as objects": np.array(["a", "bb", "c"], dtype=object)[np.digitize(NUMBERS[:, 0], [-0.5, 0.5])],
    "a single class": np.full(60, 7),
    "several labels": (NUMBERS[:, :3] > 0).astype(int),
}


@onnx_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("more", [{}, {"batch_norm": True, "dropout": 0.1}, {"loss": xn.MeanSquaredError()}], ids=str)
@pytest.mark.parametrize("labels", LABELS)
def test_a_classifiers_file_gives_its_labels_and_probabilities(tmp_path, labels, more, dtype):
    x, y = NUMBERS.astype(dtype), LABELS[labels]
    model = estimators.MLPClassifier(8, max_iter=4, random_state=0, **more).fit(x, y)
    model.to_onnx(tmp_path / "model.onnx")
    file = session(tmp_path / "model.onnx")
    k = y.shape[1] if labels == "several labels" else max(2, len(set(y)))
    shapes = {v.name: v.shape for v in (*file.get_inputs(), *file.get_outputs())}
    assert shapes == {
        "X": ["N", 5],
        "label": ["N", k] if labels == "several labels" else ["N"],
        "probabilities": ["N", k],
    }
    assert [o.name for o in file.get_outputs()] == ["label", "probabilities"]
    for rows in (slice(0, 1), slice(0, 60)):
        label, probabilities = file.run(None, {"X": x[rows]})
        expected = model.predict_proba(x[rows])
        assert (probabilities.dtype, probabilities.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(label, model.predict(x[rows]))
        assert label.dtype == (object if "words" in labels else np.int64)


@onnx_only
def test_a_classifier_of_two_outputs_for_two_classes_has_its_file(tmp_path):
    model = estimators.MLPClassifier(8, max_iter=4, random_state=0, loss=xn.SoftmaxCrossEntropy())
    model.fit(NUMBERS, LABELS["two words"]).to_onnx(tmp_path / "model.onnx")
    label, probabilities = session(tmp_path / "model.onnx").run(None, {"X": NUMBERS})
    np.testing.assert_array_equal(label, model.predict(NUMBERS))
    np.testing.assert_allclose(probabilities, model.predict_proba(NUMBERS), rtol=0, atol=1e-6)


@onnx_only
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_regressors_file_gives_its_numbers(tmp_path, outputs, loss):
    y = np.abs(NUMBERS[:, :outputs])
    model = estimators.MLPRegressor(loss, 8, max_iter=4, random_state=0).fit(NUMBERS, y[:, 0] if outputs == 1 else y)
    model.to_onnx(tmp_path / "model.onnx")
    (variable,) = session(tmp_path / "model.onnx").run(["variable"], {"X": NUMBERS})
    np.testing.assert_allclose(variable, model.predict(NUMBERS).reshape(60, outputs), rtol=0, atol=1e-6)


@onnx_only
def test_what_an_estimators_file_cannot_hold_is_refused_by_its_method(tmp_path):
    model = estimators.MLPClassifier(layers=lambda n, k: [Scale(n), xn.Dense(n, k)], max_iter=1)
    with pytest.raises(TypeError, match=r"^to_onnx: layer 0, Scale\(5\), has a forward of its own"):
        model.fit(NUMBERS, LABELS["booleans"]).to_onnx(tmp_path / "model.onnx")
    days = np.where(LABELS["booleans"], "2000-01-01", "2000-01-02").astype("M8[D]")
    with pytest.raises(TypeError, match=r"^to_onnx: classes must be numbers or strings, got array"):
        estimators.MLPClassifier(4, max_iter=1).fit(NUMBERS, days).to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_estimator_without_onnx_or_a_fit_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = estimators.MLPRegressor(hidden_layer_sizes=4, max_iter=1)
    with pytest.raises(NotFittedError):
        model.to_onnx(tmp_path / "model.onnx")
    with pytest.raises(ImportError, match=r"^to_onnx needs the onnx package: pip install onnx$"):
        model.fit(NUMBERS, NUMBERS[:, 0]).to_onnx(tmp_path / "model.onnx")
