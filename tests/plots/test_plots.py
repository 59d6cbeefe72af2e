"""The pictures show the numbers they are given, from every backend."""

import builtins
import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn

CROSS = xn.SoftmaxCrossEntropy()


@pytest.fixture
def plots(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    yield xn.plots
    plt.close("all")


def drawn(figure):
    """Draw it as a file would have it: what cannot be drawn raises or warns here."""
    figure.canvas.draw()
    return figure


def apart(artists):
    """None of these, as drawn, lies on another, but for a point."""
    boxes = [artist.get_window_extent() for artist in artists]
    return not any(
        a.x0 + 1 < b.x1 and b.x0 + 1 < a.x1 and a.y0 + 1 < b.y1 and b.y0 + 1 < a.y1
        for a, b in itertools.combinations(boxes, 2)
    )


def inside(figure, artists):
    """The figure cuts nothing off them."""
    boxes = [artist.get_window_extent() for artist in artists]
    return all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= figure.bbox.x1 and b.y1 <= figure.bbox.y1 for b in boxes)


def numbers(axis):
    """The labels of an axis that are in sight."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def history(**measures):
    made = xn.History()
    made.update(measures)
    return made


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_learning_curves_show_training_and_validation(plots):
    ax = plots.learning_curves({"loss": [1.0, 0.5, 0.25], "val_loss": [1.5, 1.0, 0.75]})
    (training, validation) = ax.lines
    np.testing.assert_array_equal(training.get_ydata(), [1.0, 0.5, 0.25])
    np.testing.assert_array_equal(validation.get_xdata(), [1, 2, 3])
    assert [text.get_text() for text in ax.get_legend().texts] == ["training", "validation"]
    assert [text.get_text() for text in ax.texts] == ["0.25", "0.75"]
    assert ax.get_yscale() == "log"
    drawn(ax.figure)


@pytest.mark.numpy_only
def test_learning_curves_of_accuracy_or_a_loss_of_zero_or_a_flat_one_are_linear(plots):
    _, own = __import__("matplotlib.pyplot").pyplot.subplots()
    assert plots.learning_curves({"val_accuracy": [0.5]}, "accuracy", own) is own
    assert own.get_yscale() == "linear"
    assert list(own.get_xticks()) == [1]
    assert plots.learning_curves({"loss": [1.0, 0.0]}).get_yscale() == "linear"
    assert plots.learning_curves({"loss": [0.7, 0.69]}).get_yscale() == "linear"


@pytest.mark.numpy_only
def test_curves_with_gaps_show_every_finite_value_and_say_where_there_is_none(plots):
    ax = plots.learning_curves({"loss": [math.nan, 2.0, math.inf, 4.0, 3.0], "val_loss": [1.0] * 5})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [math.nan, 2.0, math.nan, 4.0, 3.0])
    assert ax.lines[0].get_markevery() == [1]  # no line ends at it
    assert ax.lines[1].get_marker() == "None"
    assert ax.get_yscale() == "log"
    assert plots.learning_curves({"loss": [1.0, math.nan]}).texts[0].get_text() == "nan"
    ax = plots.learning_curves({"loss": [math.nan] * 3})
    assert [text.get_text() for text in ax.texts] == ["no finite value"]
    drawn(ax.figure)


@pytest.mark.numpy_only
@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.5, 0.505), (0.505, 0.5)])
def test_the_numbers_at_the_curves_ends_do_not_cover_one_another(plots, ends):
    ax = plots.learning_curves({"accuracy": [0.1, ends[0]], "val_accuracy": [0.2, ends[1]]}, "accuracy")
    drawn(ax.figure)
    low, high = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert low.y1 <= high.y0 + 2


@pytest.mark.numpy_only
def test_a_history_draws_the_loss_first_and_each_measure_with_its_validation(plots):
    h = history(loss=[2.0, 1.0], val_loss=[3.0, 2.0], learning_rate=[0.1, 0.02], accuracy=[0.1, 0.2], val_f1=[0.3, 0.4])
    figure = drawn(h.plot())
    assert [ax.get_title() for ax in figure.axes] == ["Loss", "Accuracy", "F1", "Learning rate"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss, log scale", "accuracy", "f1", "learning_rate, log scale"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 1, 1, 1]
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), [0.3, 0.4])
    assert plots.training(h, figure) is figure
    with pytest.raises(ValueError, match="the history is empty"):
        xn.History().plot()
    with pytest.raises(ValueError, match="no 'mine' in the history, which has loss, val_loss"):
        plots.learning_curves(h, "mine")


@pytest.mark.numpy_only
def test_the_curves_mark_the_epoch_that_early_stopping_went_back_to(plots):
    h = history(loss=[2.0, 1.0, 0.5], val_loss=[3.0, 2.0, 4.0], val_mae=[1.0, 0.5, 1.0], learning_rate=[0.1] * 3)
    h.best_epoch, h.monitor = 2, "val_loss"
    loss, mae, rate = drawn(h.plot()).axes
    assert mae.get_title() == "MAE"
    for ax in loss, mae:
        assert list(ax.lines[-1].get_xdata()) == [2, 2]
        assert ax.get_legend().texts[-1].get_text() == "back to epoch 2"
    assert len(rate.lines) == 1


@pytest.mark.numpy_only
def test_a_notebook_shows_a_figure_once(plots, monkeypatch):
    import matplotlib.pyplot as plt

    figure = plots.learning_curves({"loss": [1.0, 0.5]}).figure
    assert figure._repr_mimebundle_() == {}  # the notebook's own formatters draw it
    assert plt.fignum_exists(figure.number)
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    figure._repr_mimebundle_(include=None, exclude=None)
    assert not plt.fignum_exists(figure.number)  # or it would be drawn once more at the cell's end


# --- classes ----------------------------------------------------------------------------------------------------------


def test_confusion_matrix_writes_every_count(lib, plots):
    ax = plots.confusion_matrix(lib.asarray(np.array([[5, 2], [0, 7]])), names=["no", "yes"])
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {((0, 0), "5"), ((1, 0), "2"), ((1, 1), "7")}
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0, 2], [0, 0]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["no", "yes"]
    drawn(ax.figure)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("classes", "written"), [(1, 1), (25, 25), (100, 0)])
def test_a_confusion_matrix_of_many_classes_leaves_the_counts_to_the_colours(plots, classes, written):
    ax = plots.confusion_matrix(np.diag(np.full(classes, 9)))
    assert len(ax.texts) == written
    assert max(ax.figure.get_size_inches()) < 11
    drawn(ax.figure)


@pytest.mark.numpy_only
@pytest.mark.parametrize("classes", [1, 3, 30])
def test_where_nothing_is_wrong_the_confusion_matrix_has_no_red_and_its_diagonal_is_blue(plots, classes):
    ax = plots.confusion_matrix(np.diag(np.full(classes, 9)))
    wrong, right = ax.images
    assert wrong.get_clim() == (0, 1)
    assert not wrong.norm(wrong.get_array()).any()
    np.testing.assert_array_equal(right.get_array().filled(0), np.eye(classes))
    assert ax.get_xlabel() == "predicted\nblue: right, red: wrong"


@pytest.mark.numpy_only
def test_a_confusion_matrix_of_shares_writes_two_decimals(plots):
    ax = plots.confusion_matrix(np.array([[2 / 3, 1 / 3], [0.0, 1.0]]))
    assert [text.get_text() for text in ax.texts] == ["0.67", "0.33", "1"]
    assert ax.images[0].norm(1 / 3) == 0.5
    ax = plots.confusion_matrix(np.array([[0.5, 0.5], [np.nan, np.nan]]))  # of a class without rows
    assert ax.images[0].get_clim() == (0, 1)
    drawn(ax.figure)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("classes", "count", "written"), [(10, 9_999_999, 100), (25, 9_999, 625), (25, 99_999, 0)])
def test_the_counts_do_not_cover_one_another(plots, classes, count, written):
    ax = plots.confusion_matrix(np.full((classes, classes), count))
    drawn(ax.figure)
    assert len(ax.texts) == written
    assert apart(ax.texts)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("classes", "letters"), [(3, 50), (25, 12), (300, 3)])
def test_the_classes_names_leave_room_for_the_matrix_and_for_one_another(plots, classes, letters):
    ax = plots.confusion_matrix(np.eye(classes, dtype=int), names=["n" * letters] * classes)
    drawn(ax.figure)
    assert ax.get_window_extent().width > 3 * ax.figure.dpi
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert apart(labels)
        assert inside(ax.figure, labels)


@pytest.mark.numpy_only
def test_names_that_are_not_one_for_each_class_are_refused(plots):
    with pytest.raises(ValueError, match=r"^confusion_matrix: 2 names for 3 classes; give one for each"):
        plots.confusion_matrix(np.eye(3), names=["no", "yes"])


def test_misclassified_shows_the_wrong_ones_alone(lib, plots):
    images = np.arange(5 * 4).reshape(5, 2, 2)
    predicted, true = lib.asarray(np.array([0, 1, 2, 3, 4])), np.array([0, 9, 2, 8, 4])
    ax = plots.misclassified(lib.asarray(images), predicted, true, columns=1)
    assert [text.get_text() for text in ax.texts] == ["9 as 1", "8 as 3"]
    np.testing.assert_array_equal(ax.images[1].get_array(), images[3])
    assert ax.get_title() == "2 of 5 wrong"
    assert plots.misclassified(images, np.zeros(5), np.ones(5), most=3).get_title() == "5 of 5 wrong, the first 3 shown"
    assert plots.misclassified(images, np.ones(5), np.ones(5)).get_title() == "0 of 5 wrong"
    drawn(ax.figure)


def test_misclassified_shows_flat_square_images_too(lib, plots):
    images, predicted = np.arange(2 * 9.0).reshape(2, 3, 3), np.array([0, 1])
    ax = plots.misclassified(lib.asarray(images.reshape(2, 9)), lib.asarray(predicted), [0, 2])
    np.testing.assert_array_equal(ax.images[0].get_array(), images[1])
    drawn(ax.figure)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("shape", "names", "columns"),
    [
        ((4, 100), ["0", "1"], 6),
        ((100, 4), ["0", "1"], 6),
        ((8, 8), ["0", "1"], 1),
        ((8, 8), ["Iris versicolor", "Iris virginica"], 6),
    ],
)
def test_the_classes_beside_images_of_any_shape_can_be_read(plots, shape, names, columns):
    true, predicted = np.array(names)[[0] * 9], np.array(names)[[1] * 9]
    ax = plots.misclassified(np.ones((9, *shape)), predicted, true, most=8, columns=columns)
    drawn(ax.figure)
    assert apart([*ax.texts, *ax.images])
    assert inside(ax.figure, [ax.title, *ax.texts, *ax.images])
    assert max(ax.figure.get_size_inches()) < 12


@pytest.mark.numpy_only
def test_the_classes_fit_in_axes_that_are_given_too(plots):
    _, own = __import__("matplotlib.pyplot").pyplot.subplots(figsize=(3, 2.5))
    ax = plots.misclassified(np.ones((30, 8, 8)), np.zeros(30, int), np.ones(30, int), ax=own)
    drawn(ax.figure)
    assert apart([*ax.texts, *ax.images])


@pytest.mark.numpy_only
@pytest.mark.parametrize("shape", [(5,), (5, 8), (5, 0), (5, 0, 8), (5, 8, 8, 1)])
def test_misclassified_refuses_what_are_no_images(plots, shape):
    message = (
        rf"^misclassified: images of shape {re.escape(str(shape))}, expected \(n, height, width\), .*; give images"
    )
    with pytest.raises(ValueError, match=message):
        plots.misclassified(np.zeros(shape), np.zeros(5), np.ones(5))


@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (4,), ()])
@pytest.mark.parametrize("wrong", ["predicted", "true"])
def test_misclassified_refuses_what_are_no_classes_of_the_images(lib, plots, wrong, shape):
    given = {"predicted": np.zeros(5), "true": np.ones(5)} | {wrong: lib.asarray(np.ones(shape))}
    message = rf"^misclassified: {wrong} of shape {re.escape(str(shape))}, expected \(5,\), .* give argmax\(axis=1\)$"
    with pytest.raises(ValueError, match=message):
        plots.misclassified(np.zeros((5, 8, 8)), **given)


@pytest.mark.parametrize("shape", [(5, 3), (5,), (3, 3, 1), ()])
def test_a_confusion_matrix_is_of_counts_not_of_predictions(lib, plots, shape):
    message = rf"^confusion_matrix: counts of shape {re.escape(str(shape))}, expected \(K, K\), .*; give xn\.confusion_"
    with pytest.raises(ValueError, match=message):
        plots.confusion_matrix(lib.asarray(np.ones(shape)), np.ones(5))


# --- inside a network -------------------------------------------------------------------------------------------------


def network(lib, *layers):
    layers = layers or (xn.Dense(6, 4), xn.Sequential(xn.BatchNorm(4), xn.ReLU()), xn.Dense(4, 3))
    return xn.Sequential(*layers).initialize(lib.backend, "float64", seed=0)


def test_the_first_weights_are_shown_unit_by_unit_as_images(lib, plots):
    net = network(lib, xn.BatchNorm(6), xn.Dense(6, 5), xn.ReLU())
    weight = lib.to_numpy(net.layers[1].params["weight"])
    ax = plots.first_layer_weights(net, (2, 3), columns=2)
    sheet = np.asarray(ax.images[0].get_array().filled(np.nan))
    assert sheet.shape == (2 * 3 + 2, 2 * 3 + 1)
    for unit, (row, column) in enumerate([(0, 0), (0, 4), (3, 0), (3, 4), (6, 0)]):
        np.testing.assert_array_equal(sheet[row : row + 2, column : column + 3], weight[:, unit].reshape(2, 3))
    assert np.isnan(sheet[6:, 4:]).all()  # no sixth unit
    assert ax.images[0].get_clim() == (-np.abs(weight).max(), np.abs(weight).max())
    drawn(ax.figure)
    assert "the first 2 of 5 units" in plots.first_layer_weights(net, (2, 3), most=2).get_title().replace("\n", " ")
    np.testing.assert_array_equal(plots.first_layer_weights(net).images[0].get_array(), weight.T)


def test_weights_that_are_no_images_are_refused_with_what_would_do(lib, plots):
    with pytest.raises(ValueError, match=r"layer 0, Dense\(6, 4\), has 6 inputs, .*\(8, 8\); give \(height, width\)"):
        plots.first_layer_weights(network(lib), (8, 8))
    with pytest.raises(ValueError, match="has no Dense layer"):
        plots.first_layer_weights(network(lib, xn.BatchNorm(6)))


@pytest.mark.numpy_only
@pytest.mark.parametrize(("shape", "units"), [((8, 8), 1), ((1, 64), 5), ((64, 1), 5), (None, 100)])
def test_weights_of_any_shape_and_a_long_title_stay_in_a_figure_of_usual_size(plots, shape, units):
    net = xn.Sequential(xn.Dense(64, units, trainable=False, initializer="he_normal")).initialize()
    ax = plots.first_layer_weights(net, shape)
    drawn(ax.figure)
    assert inside(ax.figure, [ax.title])
    assert max(ax.figure.get_size_inches()) < 14


@pytest.mark.numpy_only
def test_inputs_and_units_are_counted_in_whole_numbers(plots):
    ax = plots.first_layer_weights(xn.Sequential(xn.Dense(1, 2)).initialize())
    drawn(ax.figure)
    assert [label.get_text() for label in (*numbers(ax.xaxis), *numbers(ax.yaxis))] == ["0", "0", "1"]


@pytest.mark.numpy_only
def test_the_titles_and_numbers_of_histograms_do_not_cover_one_another(plots):
    frozen = [xn.Dense(1, 1, trainable=False, initializer="glorot_uniform") for _ in range(3)]
    net = xn.Sequential(*frozen).initialize()
    net.set_params({name: np.full(a.shape, float(a.ndim == 2)) for name, a in net.params.items()})
    figure = drawn(plots.activation_histograms(net, np.array([[-1e-4], [-0.0191]])))
    titles = [ax.title for ax in figure.axes]
    assert apart(titles)
    assert inside(figure, titles)
    assert all(apart(numbers(ax.xaxis)) for ax in figure.axes)


def test_histograms_count_every_output_of_every_layer(lib, plots):
    net, x = network(lib), np.random.default_rng(0).normal(size=(50, 6))
    params = {name: lib.to_numpy(a) for name, a in net.params.items()}
    net.set_params(params | {"2.bias": np.full(3, 0.1)})  # a row that no unit answers to has no output of 0 for it
    figure = drawn(plots.activation_histograms(net, x, columns=2))
    assert [ax.get_title() for ax in figure.axes] == [
        "0  Dense(6, 4)",
        "1.0  BatchNorm(4)",
        "1.1  ReLU()",
        "2  Dense(4, 3)",
    ]
    inside = net.layers[1].layers[0].forward(net.layers[0].forward(lib.asarray(x))[0])[0]
    positive = int((lib.to_numpy(inside) > 0).sum())
    counts = [round(sum(bar.get_height() for bar in ax.patches)) for ax in figure.axes]
    assert counts == [200, 200, positive, 150]
    assert figure.axes[2].get_xlabel() == f"output, {1 - positive / 200:.0%} exactly 0"


def test_gradient_histograms_are_those_of_the_loss_on_one_scale(lib, plots):
    net = network(lib)
    x, y = np.random.default_rng(0).normal(size=(50, 6)), np.arange(50) % 3
    figure = drawn(plots.gradient_histograms(net, x, y, CROSS))
    _, grads = net.value_and_grad(x, y, CROSS)
    sizes = [
        np.concatenate([np.abs(lib.to_numpy(g).ravel()) for k, g in grads.items() if k.startswith(f"{name}.")])
        for name in ("0", "1.0", "2")
    ]
    assert len(figure.axes) == 3
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    for ax, size in zip(figure.axes, sizes, strict=True):
        centres = np.repeat([bar.get_x() + bar.get_width() / 2 for bar in ax.patches],
                            [round(bar.get_height()) for bar in ax.patches])  # fmt: skip
        np.testing.assert_allclose(centres, np.sort(np.log10(size[size > 0])), atol=ax.patches[0].get_width())


def test_histograms_of_what_is_not_finite_or_all_alike_say_so(lib, plots):
    net = network(lib, xn.Dense(6, 4), xn.ReLU())
    net.set_params({"0.weight": np.full((6, 4), 1e300), "0.bias": np.zeros(4)})
    figure = drawn(plots.activation_histograms(net, np.full((10, 6), 1e300)))
    assert figure.axes[0].get_xlabel() == "output, 40 not finite"
    net.set_params({"0.weight": np.zeros((6, 4)), "0.bias": np.full(4, -1.0)})
    figure = drawn(plots.activation_histograms(net, np.ones((10, 6))))
    assert [round(sum(bar.get_height() for bar in ax.patches)) for ax in figure.axes] == [40, 0]
    assert figure.axes[1].get_xlabel() == "output, 100% exactly 0"


class Rows(xn.Layer):
    """A user's layer: (N, 6) to images (N, channels, 2, 3)."""

    def __init__(self, channels):
        self.channels = channels

    def forward(self, x, training=False):
        xp = xn.ops.namespace(x)
        return xp.stack([xp.reshape(x, (-1, 2, 3))] * self.channels, axis=1), x

    def backward(self, dy, cache):
        xp = xn.ops.namespace(dy)
        return xp.reshape(xp.sum(dy, axis=1), (-1, 6)), {}

    def output_shape(self, input_shape):
        return (input_shape[0], self.channels, 2, 3)


def test_an_explanation_draws_feature_maps_of_images_and_histograms_of_the_rest(lib, plots):
    net = network(lib, xn.Dense(6, 6), xn.Sequential(Rows(20)))
    x = np.random.default_rng(0).normal(size=(4, 6))
    e = net.explain(x, np.zeros((4, 20, 2, 3)), xn.MeanSquaredError())
    figure = drawn(e.plot(row=-1))
    assert [ax.get_title() for ax in figure.axes] == ["input", "", "0  Dense(6, 6)", "", "1.0  Rows(20)", ""]
    labels = ["x", "dL/dx", "y", "dL/dy", "y, the first 16 of 20", "dL/dy, the first 16 of 20"]
    assert [ax.get_xlabel() for ax in figure.axes] == labels
    assert [round(sum(bar.get_height() for bar in ax.patches)) for ax in figure.axes[:4]] == [24] * 4
    maps = np.asarray(figure.axes[4].images[0].get_array().filled(np.nan))
    np.testing.assert_array_equal(maps[:2, :3], lib.to_numpy(e["1.0"].y)[-1, 0])
    assert apart([ax.title for ax in figure.axes])


def test_an_explanation_draws_the_attention_of_each_head(lib, plots):
    net = network(lib, xn.Embedding(7, 4), xn.MultiHeadAttention(4, 2, causal=True))
    e = net.explain(np.arange(10).reshape(2, 5) % 7, np.zeros((2, 5, 4)), xn.MeanSquaredError())
    figure = e.plot(row=1)
    ax = figure.axes[4]
    assert ax.get_xlabel() == "attention, 40% exactly 0"
    sheet = np.asarray(ax.images[0].get_array().filled(np.nan))
    assert sheet.shape == (5, 11)
    trace = e["1"]
    q, k, _ = np.split(lib.to_numpy(trace.x)[1] @ lib.to_numpy(net.params["1.qkv_weight"]), 3, axis=1)
    scores = np.where(np.tri(5) > 0, q[:, :2] @ k[:, :2].T / 2**0.5, -np.inf)  # of the first head
    np.testing.assert_allclose(sheet[:, :5], np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), rtol=1e-10)
    assert not figure.axes[1].axison  # an x of integers has no derivative


@pytest.mark.numpy_only
def test_an_explanation_of_another_row_or_kind_is_refused(plots):
    net = xn.Sequential(xn.Dense(6, 3)).initialize()
    e = net.explain(np.ones((4, 6)), [0, 1, 2, 0], CROSS)
    for row in (4, -5, 0.5):
        with pytest.raises(ValueError, match=rf"^explanation: row {row} of a batch of 4; give a number from 0 to 3"):
            e.plot(row)
    with pytest.raises(TypeError, match=r"^explanation: expected what net\.explain\(x, y, loss\) returns, got None"):
        plots.explanation(None)


# --- as a package -----------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_without_matplotlib_a_picture_says_what_to_install_and_the_rest_works(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    real = builtins.__import__
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    net = xn.Sequential(xn.Dense(4, 2)).initialize("numpy")
    x, y = np.ones((3, 4)), np.zeros(3, int)
    for draw in (
        lambda: history(loss=[1.0]).plot(),
        lambda: xn.plots.confusion_matrix(np.eye(2)),
        lambda: xn.plots.misclassified(np.ones((1, 2, 2)), np.ones(1), np.zeros(1)),
        lambda: xn.plots.first_layer_weights(net, (2, 2)),
        lambda: xn.plots.activation_histograms(net, x),
        lambda: xn.plots.gradient_histograms(net, x, y, CROSS),
        net.explain(x, y, CROSS).plot,
    ):
        with pytest.raises(ImportError, match=r"xpnet\.plots needs matplotlib: pip install matplotlib"):
            draw()


@pytest.mark.numpy_only
def test_plots_are_there_with_the_package_and_matplotlib_is_not():
    program = "import sys, xpnet; assert xpnet.plots.training; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


@pytest.mark.numpy_only
def test_digits_need_scikit_learn_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn threadpoolctl"):
        xn.data.load_digits()


def test_gradient_histograms_of_a_network_without_parameters_are_refused(plots):
    net = xn.Sequential(xn.ReLU()).initialize()
    with pytest.raises(ValueError, match="gradient_histograms: no layer of the network has parameters"):
        plots.gradient_histograms(net, np.ones((4, 3)), [0, 1, 2, 0], CROSS)
