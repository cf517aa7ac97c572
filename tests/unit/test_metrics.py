import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import jaccard_score, precision_score, recall_score

from segpipe import metrics
from segpipe.data.volume import IGNORE

masks = hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 1))


def measured(name, prediction, reference, classes=1):
    return metrics.overlap(name, metrics.count(prediction, reference, classes))


@given(masks, masks)
def test_agrees_with_monai_and_scikit_learn_where_both_masks_have_foreground(prediction, reference):
    from monai.metrics import compute_dice

    prediction[0, 0, 0] = reference[2, 5, 4] = 1
    monai = compute_dice(
        torch.from_numpy(prediction)[None, None], torch.from_numpy(reference)[None, None], ignore_empty=False
    )
    assert measured("dice", prediction, reference) == pytest.approx(monai.item(), abs=1e-6)
    for name, oracle in (("iou", jaccard_score), ("precision", precision_score), ("recall", recall_score)):
        expected = oracle(reference.ravel(), prediction.ravel())
        assert measured(name, prediction, reference) == pytest.approx(expected, abs=1e-6)


@given(masks, masks)
def test_dice_and_iou_are_symmetric_bounded_and_tied(one, other):
    dice, iou = measured("dice", one, other), measured("iou", one, other)
    np.testing.assert_array_equal(dice, measured("dice", other, one))
    if not np.isnan(dice):
        assert 0 <= iou <= dice <= 1
        assert dice == pytest.approx(2 * iou / (1 + iou))


@pytest.mark.parametrize("name", metrics.OVERLAPS)
@pytest.mark.parametrize(
    ("predicted", "reference", "value", "outcome"),
    [(0, 0, np.nan, "both empty"), (0, 1, 0, "missed"), (1, 0, 0, "false alarm"), (1, 1, 1, "found")],
)
def test_empty_masks_follow_the_convention(name, predicted, reference, value, outcome):
    counts = metrics.count(np.full((1, 2, 2), predicted, np.uint8), np.full((1, 2, 2), reference, np.uint8), 1)
    np.testing.assert_equal(metrics.overlap(name, counts)[0], value)
    assert metrics.outcome(counts) == outcome


def test_a_shifted_square_has_the_dice_geometry_says():
    reference, prediction = np.zeros((2, 1, 20, 20), np.uint8)
    reference[0, 5:15, 5:15] = 1
    prediction[0, 5:15, 8:18] = 1
    assert measured("dice", prediction, reference)[0] == pytest.approx(0.7)


def test_classes_are_counted_apart_and_absent_ones_left_out_of_the_mean():
    reference = np.array([[[1, 1, 2, 0]]], np.uint8)
    prediction = np.array([[[1, 0, 1, 0]]], np.uint8)
    values = measured("dice", prediction, reference, classes=3)
    np.testing.assert_allclose(values, [0.5, 0, np.nan])
    assert metrics.class_mean(values) == pytest.approx(0.25)
    assert np.isnan(metrics.class_mean(np.array([np.nan])))


@given(masks, masks, hnp.arrays(np.bool_, (3, 6, 5)))
def test_ignored_voxels_count_like_voxels_that_are_not_there(prediction, reference, ignored):
    whole = metrics.count(prediction, np.where(ignored, np.uint8(IGNORE), reference), 1)
    kept = metrics.count(prediction[~ignored], reference[~ignored], 1)
    for one, other in zip(whole, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_last_class_that_fits_is_not_taken_for_ignored():
    reference = np.array([[[254, 254, IGNORE, 0]]], np.uint8)
    counts = metrics.count(np.array([[[254, 0, 254, 254]]], np.uint8), reference, 254)
    assert [int(c[-1]) for c in counts] == [1, 2, 2]
