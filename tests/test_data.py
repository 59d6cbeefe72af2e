"""Data: the digits, splits, minibatches."""

import numpy as np
import pytest

import xpnet as xn


@pytest.mark.numpy_only
def test_the_digits_are_scikit_learns_with_pixels_from_0_to_1():
    from sklearn.datasets import load_digits

    x, y, theirs = *xn.data.load_digits(), load_digits()
    assert (x.min(), x.max(), x.dtype, y.dtype) == (0.0, 1.0, np.float64, np.int64)
    np.testing.assert_array_equal(16.0 * x, theirs.data)
    np.testing.assert_array_equal(y, theirs.target)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("test_size", "count"), [(0.25, 3), (0.5, 6), (1, 1), (5, 5), (np.int64(5), 5), (np.float64(0.5), 6)]
)
def test_a_split_is_every_row_once_with_its_target(test_size, count):
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12)
    split = xn.data.train_test_split(x, y, test_size)
    x_train, x_test, y_train, y_test = split
    assert (len(x_train), len(x_test)) == (12 - count, count)
    assert sorted([*y_train, *y_test]) == list(range(12))
    assert [*y_train, *y_test] != list(range(12))
    np.testing.assert_array_equal(np.concatenate([x_train, x_test]), x[np.concatenate([y_train, y_test])])
    for a, b in zip(split, xn.data.train_test_split(x, y, test_size), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(xn.data.train_test_split(x, y, test_size, seed=1)[3]) != list(y_test)
    assert list(xn.data.train_test_split(x, y, test_size, seed=None)[3]) == list(range(12 - count, 12))


@pytest.mark.numpy_only
def test_a_split_holds_out_a_quarter_by_seed_0_unless_told_otherwise():
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12)
    for a, b in zip(xn.data.train_test_split(x, y), xn.data.train_test_split(x, y, 0.25, seed=0), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("rows", "size"), [(12, 0), (12, 12), (12, 1.0), (12, 0.01), (12, -3), (1, 0.5), (11, 0.5)])
def test_a_split_that_cannot_be_made_is_refused(rows, size):
    with pytest.raises(ValueError, match=r"train_test_split: .*(rows|empty)"):
        xn.data.train_test_split(np.zeros((12, 2))[:rows], np.zeros(12 if rows > 1 else 1), size)


@pytest.mark.numpy_only
@pytest.mark.parametrize("size", ["0.2", None, True, np.nan, np.ones(12)], ids=repr)
def test_a_test_size_that_is_no_number_is_refused_by_name(size):
    with pytest.raises(ValueError, match=r"^train_test_split: test_size must be a finite number, got "):
        xn.data.train_test_split(np.zeros((12, 2)), np.zeros(12), size)


@pytest.mark.numpy_only
def test_a_quarter_of_the_rows_is_held_out_unless_said_otherwise():
    x_train, x_test, y_train, y_test = xn.data.train_test_split(np.zeros((40, 2)), np.zeros(40))
    assert (len(x_train), len(x_test), len(y_train), len(y_test)) == (30, 10, 30, 10)


@pytest.mark.numpy_only
def test_a_split_of_frames_is_frames_with_their_own_index_and_of_masked_arrays_masked():
    pandas = pytest.importorskip("pandas")
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12)
    expected = xn.data.train_test_split(x, y)
    frame, series = pandas.DataFrame(x, list("abcdefghijkl"), ["u", "v"]), pandas.Series(y, name="y", dtype="Int64")
    split = xn.data.train_test_split(frame, series)
    assert [type(part) for part in split] == [pandas.DataFrame] * 2 + [pandas.Series] * 2
    for part, plain in zip(split, expected, strict=True):
        np.testing.assert_array_equal(part, plain)
    assert list(split[0].columns) == ["u", "v"]
    assert list(split[0].index) == ["abcdefghijkl"[row] for row in expected[2]]
    masked = xn.data.train_test_split(np.ma.masked_equal(x, 6.0), np.ma.masked_equal(y, 7))
    assert sum(np.ma.getmaskarray(part).sum() for part in masked) == 2
    for part, plain in zip(masked, expected, strict=True):
        np.testing.assert_array_equal(part.data, plain)
    lists = xn.data.train_test_split(x.tolist(), y.tolist())
    for part, plain in zip(lists, expected, strict=True):
        assert type(part) is np.ndarray
        np.testing.assert_array_equal(part, plain)


@pytest.mark.numpy_only
@pytest.mark.parametrize("seed", [0, 3, None])
@pytest.mark.parametrize("test_size", [0.25, 10, 13])
def test_a_stratified_split_holds_each_label_in_proportion(seed, test_size):
    labels = np.repeat(["a", "b", "c"], [4, 12, 24])[np.random.default_rng(1).permutation(40)]
    rows, count = np.arange(40), 10 if test_size == 0.25 else test_size
    train, test, y_train, y_test = xn.data.train_test_split(rows, labels, test_size, seed, stratify=labels)
    assert sorted([*train, *test]) == list(rows)
    np.testing.assert_array_equal(labels[test], y_test)
    np.testing.assert_array_equal(labels[train], y_train)
    shares = {10: [1, 3, 6], 13: [1, 4, 8]}[count]  # 1, 3, 6; and of 1.3, 3.9, 7.8
    assert [list(y_test).count(name) for name in "abc"] == shares
    again = xn.data.train_test_split(rows, labels, test_size, seed, stratify=list(labels))
    np.testing.assert_array_equal(again[1], test)
    if seed is None:  # the last of each label, as they stand
        last = [row for name, share in zip("abc", shares, strict=True) for row in rows[labels == name][-share:]]
        assert list(test) == sorted(last)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (["a", *"bbbbbbbbbbb"], 3, r"stratify has 2 labels, '?.*a'?\)? with 1 row\(s\), for 9 and 3 rows"),
        (list("aabbccddeeff"), 3, r"stratify has 6 labels, .* each needs two, and each side a row for every label"),
        (list("aabb"), 3, r"stratify has shape \(4,\), expected a label a row, \(12,\)"),
        (np.eye(12), 3, r"stratify has shape \(12, 12\)"),
    ],
)
def test_labels_that_cannot_be_split_in_proportion_are_refused(labels, size, message):
    with pytest.raises(ValueError, match=f"^train_test_split: {message}"):
        xn.data.train_test_split(np.zeros((12, 2)), np.zeros(12), size, stratify=labels)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "is None, expected an array"),
        (5.0, "has no rows: it is a float"),
        ("abc", "has no rows: it is a str"),
        ([[1, 2], [3, 4]], "has 2 rows and y 12; they must match"),
    ],
)
def test_what_has_no_rows_to_split_is_refused(rows, words):
    with pytest.raises((ValueError, TypeError), match=f"^train_test_split: x {words}"):
        xn.data.train_test_split(rows, np.zeros(12))


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("rows", "size", "name"),
    [(10, -3, "batch_size"), (10, 0, "batch_size"), (10, 2.5, "batch_size"), (10, None, "batch_size"),
     (-1, 3, "rows"), (2.5, 3, "rows"), ("10", 3, "rows")],
)  # fmt: skip
def test_minibatches_that_cannot_be_are_refused(rows, size, name):
    with pytest.raises(ValueError, match=rf"^minibatches: {name} must be a whole number of at least [01], got"):
        xn.data.minibatches(rows, size)
    assert xn.data.minibatches(0, 3) == []


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("rows", "size", "lengths"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 10, [3]), (2, 1, [1, 1])]
)
def test_minibatches_are_all_rows_in_order(rows, size, lengths):
    parts = [list(range(rows))[s] for s in xn.data.minibatches(rows, size)]
    assert [len(part) for part in parts] == lengths
    assert [row for part in parts for row in part] == list(range(rows))
