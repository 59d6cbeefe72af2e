"""The pictures show the numbers they are given."""

import numpy as np
import pytest

import xpnet as xn

pytestmark = pytest.mark.numpy_only


@pytest.fixture
def plots(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    from xpnet import plots

    yield plots
    plt.close("all")


def test_learning_curves_show_training_and_validation(plots):
    ax = plots.learning_curves({"loss": [1.0, 0.5, 0.25], "val_loss": [1.5, 1.0, 0.75]})
    (training, validation) = ax.lines
    np.testing.assert_array_equal(training.get_ydata(), [1.0, 0.5, 0.25])
    np.testing.assert_array_equal(validation.get_xdata(), [1, 2, 3])
    assert [text.get_text() for text in ax.get_legend().texts] == ["training", "validation"]
    assert [text.get_text() for text in ax.texts] == ["0.25", "0.75"]
    assert ax.get_yscale() == "log"


def test_learning_curves_of_accuracy_or_a_loss_of_zero_are_linear(plots):
    _, own = __import__("matplotlib.pyplot").pyplot.subplots()
    assert plots.learning_curves({"val_accuracy": [0.5]}, "accuracy", own) is own
    assert own.get_yscale() == "linear"
    assert plots.learning_curves({"loss": [1.0, 0.0]}).get_yscale() == "linear"


def test_confusion_matrix_writes_every_count(plots):
    ax = plots.confusion_matrix(np.array([[5, 2], [0, 7]]))
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {((0, 0), "5"), ((1, 0), "2"), ((1, 1), "7")}
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0, 2], [0, 0]])


def test_misclassified_shows_the_wrong_ones_alone(plots):
    images = np.arange(5 * 4).reshape(5, 2, 2)
    ax = plots.misclassified(images, np.array([0, 1, 2, 3, 4]), np.array([0, 9, 2, 8, 4]), columns=1)
    assert [text.get_text() for text in ax.texts] == ["9 as 1", "8 as 3"]
    np.testing.assert_array_equal(ax.images[1].get_array(), images[3])
    assert ax.get_title() == "2 of 5 wrong"
    assert plots.misclassified(images, np.zeros(5), np.ones(5), most=3).get_title() == "5 of 5 wrong, the first 3 shown"
    assert plots.misclassified(images, np.ones(5), np.ones(5)).get_title() == "0 of 5 wrong"


def test_digits_need_scikit_learn_and_say_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'xpnet\[sklearn\]'"):
        xn.data.load_digits()
