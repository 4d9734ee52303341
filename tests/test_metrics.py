"""The metrics against counting by hand, and what they refuse."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydilate.errors import DataError, DtypeError, ShapeError
from tinydilate.metrics import (
    Row,
    Score,
    class_accuracy,
    class_iou,
    confusion_matrix,
    frequency_weighted_iou,
    group_classes,
    mean_iou,
    pixel_accuracy,
)

TRUTH = np.array([[0, 0, 1, 1], [2, 2, 2, 255]])
PREDICTION = np.array([[0, 1, 1, 1], [2, 0, 2, 1]])


def test_by_hand():
    matrix = confusion_matrix(TRUTH, PREDICTION, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 2]]
    # class 0: 1 right of a union of 3; class 1: 2 of 3; class 2: 2 of 3. Seven pixels count.
    assert class_iou(matrix).tolist() == [1 / 3, 2 / 3, 2 / 3]
    assert mean_iou(matrix) == pytest.approx(5 / 9)
    assert pixel_accuracy(matrix) == 5 / 7
    # Of class 0 one of two pixels was found, of class 1 both, of class 2 two of three.
    assert class_accuracy(matrix).tolist() == [1 / 2, 1, 2 / 3]
    # Two of seven pixels have IoU 1/3, two 2/3, three 2/3.
    assert frequency_weighted_iou(matrix) == pytest.approx((2 / 3 + 4 / 3 + 6 / 3) / 7)


@given(
    pixels=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 3, 4, 255]), st.integers(0, 4)), max_size=60
    )
)
def test_against_counting_pixel_by_pixel(pixels):
    expected = np.zeros((5, 5), dtype=np.int64)
    for t, p in pixels:
        if t != 255:
            expected[t, p] += 1
    truth = np.array([t for t, _ in pixels], dtype=np.uint8)
    prediction = np.array([p for _, p in pixels], dtype=np.uint8)
    matrix = confusion_matrix(truth, prediction, 5)
    np.testing.assert_array_equal(matrix, expected)

    counted = truth != 255
    for c, iou in enumerate(class_iou(matrix)):
        both = np.sum((truth == c) & (prediction == c))
        either = np.sum(((truth == c) | (prediction == c)) & counted)
        if either == 0:
            assert math.isnan(iou)
        else:
            assert iou == both / either


def test_bytes_do_not_overflow():
    # 20 * 21 + 20 = 440 does not fit a uint8
    truth = np.full((2, 2), 20, dtype=np.uint8)
    assert confusion_matrix(truth, truth, 21)[20, 20] == 4


def test_matrices_of_parts_add_up():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 11, (2, 6, 8, 8))
    parts = sum(confusion_matrix(t, p, 11) for t, p in zip(truth, prediction, strict=True))
    np.testing.assert_array_equal(parts, confusion_matrix(truth, prediction, 11))


def test_a_class_absent_from_both_is_left_out_of_the_mean():
    matrix = confusion_matrix([0, 0, 1], [0, 0, 1], 4)
    np.testing.assert_array_equal(class_iou(matrix), [1, 1, np.nan, np.nan])
    assert mean_iou(matrix) == 1


def test_a_class_predicted_but_never_true_counts_as_zero():
    matrix = confusion_matrix([0, 0], [0, 2], 3)
    np.testing.assert_array_equal(class_iou(matrix), [0.5, np.nan, 0])
    assert mean_iou(matrix) == 0.25


def test_nothing_counted_is_nan_and_not_an_error():
    matrix = confusion_matrix([255, 255], [0, 1], 2)
    assert matrix.sum() == 0
    assert math.isnan(mean_iou(matrix))
    assert math.isnan(pixel_accuracy(matrix))
    assert math.isnan(frequency_weighted_iou(matrix))
    assert math.isnan(Score.of(matrix, ("a", "b")).mean_accuracy)


def test_another_ignore_index():
    assert confusion_matrix([-1, 0], [0, 0], 2, ignore_index=-1).tolist() == [[1, 0], [0, 0]]


def test_a_prediction_where_the_truth_does_not_count_may_be_anything():
    assert confusion_matrix([255, 0], [255, 0], 2).tolist() == [[1, 0], [0, 0]]


def test_score_states_its_classes():
    score = Score.of(confusion_matrix([0, 0, 2], [0, 2, 2], 4), ("cat", "dog", "ground", "sky"))
    assert score.mean_iou == 0.5
    assert score.present == ("cat", "ground")
    assert score.pixels == 3
    assert str(score) == ("mean IoU 0.500 over 2 of 4 classes (cat, ground), pixel accuracy 0.667")


def test_score_is_json_without_nan():
    score = Score.of(confusion_matrix([0], [0], 2), ("ground", "digit"))
    text = json.dumps(score.to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "mean_iou": 1.0,
        "mean_over": ["ground"],
        "mean_iou_without_background": 1.0,
        "mean_accuracy": 1.0,
        "pixel_accuracy": 1.0,
        "frequency_weighted_iou": 1.0,
        "pixels": 1,
        "iou": {"ground": 1.0, "digit": None},
        "accuracy": {"ground": 1.0, "digit": None},
    }


@pytest.mark.parametrize(
    ("truth", "prediction", "num_classes", "error", "text"),
    [
        ([0, 3], [0, 1], 3, DataError, r"expected truth labels in 0\.\.2 .* got 0\.\.3"),
        ([0, -1], [0, 1], 3, DataError, r"expected truth labels in 0\.\.2 .* got -1\.\.0"),
        ([0, 1], [0, 3], 3, DataError, r"expected prediction labels in 0\.\.2 .* got 0\.\.3"),
        ([0, 1], [0, 255], 3, DataError, r"prediction labels .* got 0\.\.255; check num_classes"),
        ([0, 1], [0], 3, ShapeError, r"got \(2,\) and \(1,\); resize the scores"),
        ([0.0, 1.0], [0, 1], 3, DtypeError, r"truth as integer labels, got float64; take the arg"),
        ([0, 1], [0.5, 1.0], 3, DtypeError, r"prediction as integer labels, got float64"),
        ([0, 1], [0, 1], 0, DataError, r"expected num_classes >= 1, got 0"),
    ],
)
def test_refused(truth, prediction, num_classes, error, text):
    with pytest.raises(error, match=text):
        confusion_matrix(truth, prediction, num_classes)


def test_names_must_match_the_classes():
    with pytest.raises(ShapeError, match="each of the 3 classes, got 2 names"):
        Score.of(np.eye(3, dtype=np.int64), ("a", "b"))


def test_frequencies_are_those_of_the_truth():
    """Four pixels are class 0, though two were called so: IoU 1/2 and 1/3, weights 4 and 1."""
    matrix = confusion_matrix([0, 0, 0, 0, 1], [0, 0, 1, 1, 1], 2)
    assert frequency_weighted_iou(matrix) == pytest.approx((4 / 2 + 1 / 3) / 5)


def test_the_mean_with_and_without_background():
    matrix = confusion_matrix([0, 0, 0, 1, 2], [0, 0, 1, 1, 0], 3)
    score = Score.of(matrix, ("background", "cat", "dog"))
    assert score.iou == (0.5, 0.5, 0)
    assert score.mean_iou == pytest.approx(1 / 3)
    assert score.mean_iou_without_background == 0.25
    streets = Score.of(matrix, ("road", "cat", "dog"))
    assert streets.mean_iou_without_background == streets.mean_iou


def test_a_row_is_in_per_cent_without_the_background():
    matrix = confusion_matrix([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], 3)
    row = Score.of(matrix, ("background", "cat", "dog")).row("mine")
    # background 2/3, cat 3/4; the mean is over both.
    assert row == Row("mine", ("cat", "dog"), (75.0, None), 70.8)


def test_groups_of_classes():
    truth, prediction = np.array([[0, 0, 1, 2, 3, 255]]), np.array([[1, 2, 1, 3, 3, 0]])
    group = [0, 0, 1, 1]
    grouped = group_classes(confusion_matrix(truth, prediction, 4), group)
    by_hand = confusion_matrix([0, 0, 0, 1, 1], [0, 1, 0, 1, 1], 2)
    np.testing.assert_array_equal(grouped, by_hand)
    with pytest.raises(ShapeError, match="a group for each of the 2 classes, got 3"):
        group_classes(np.eye(2, dtype=np.int64), [0, 0, 1])


@pytest.mark.parametrize(
    "function", [class_iou, mean_iou, pixel_accuracy, class_accuracy, frequency_weighted_iou]
)
def test_a_matrix_is_square(function):
    with pytest.raises(ShapeError, match=r"expected a confusion matrix \(C, C\), got \(2, 3\)"):
        function(np.ones((2, 3), dtype=np.int64))
