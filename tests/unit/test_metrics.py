import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import jaccard_score, precision_score, recall_score

from segpipe.config.sections import MetricName
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.metrics import measurement, overlaps
from segpipe.metrics.catalogue import METRICS

NAN = float("nan")
masks = hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 1))
# (both empty, missed, false alarm) where the one mask has 2 of the 12 pixels of 4 x 3 mm, and the band all of them.
EMPTY = {
    **dict.fromkeys(("dice", "iou", "precision", "recall", "nsd", "cldice"), (NAN, 0, 0)),
    "specificity": (NAN, 1, 10 / 12),
    **dict.fromkeys(("hd95", "assd"), (NAN, 5, 5)),
    "volume_error_ml": (0, 0.002, 0.002),
    "volume_error_relative": (NAN, 1, NAN),
    **dict.fromkeys(("lesion_recall", "lesion_precision", "lesion_f1"), (NAN, 0, 0)),
    "accuracy_band": (NAN, 10 / 12, NAN),
    **dict.fromkeys(("precision_band", "recall_band", "f1_band"), (NAN, 0, NAN)),
    "roc_auc_band": (NAN, 0.5, NAN),
    "pr_auc_band": (NAN, 2 / 12, NAN),
    "ece": (0, 2 / 12, 2 / 12),
    "ece_band": (NAN, 2 / 12, NAN),
}


def measured(name, prediction, reference, classes=1):
    return overlaps.overlap(name, overlaps.count(prediction, reference, classes))


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
    if not reference.all():
        expected = recall_score(reference.ravel(), prediction.ravel(), pos_label=0)
        specificity = overlaps.specificity(overlaps.count(prediction, reference, 1), reference.size)
        assert specificity == pytest.approx(expected, abs=1e-6)


@given(masks, masks)
def test_dice_and_iou_are_symmetric_bounded_and_tied(one, other):
    dice, iou = measured("dice", one, other), measured("iou", one, other)
    np.testing.assert_array_equal(dice, measured("dice", other, one))
    if not np.isnan(dice):
        assert 0 <= iou <= dice <= 1
        assert dice == pytest.approx(2 * iou / (1 + iou))


@pytest.mark.parametrize("name", overlaps.OVERLAPS)
@pytest.mark.parametrize(
    ("predicted", "reference", "value", "outcome"),
    [(0, 0, np.nan, "both empty"), (0, 1, 0, "missed"), (1, 0, 0, "false alarm"), (1, 1, 1, "found")],
)
def test_empty_masks_follow_the_convention(name, predicted, reference, value, outcome):
    counts = overlaps.count(np.full((1, 2, 2), predicted, np.uint8), np.full((1, 2, 2), reference, np.uint8), 1)
    np.testing.assert_equal(overlaps.overlap(name, counts)[0], value)
    assert overlaps.outcome(counts) == outcome


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
    assert overlaps.class_mean(values) == pytest.approx(0.25)
    assert np.isnan(overlaps.class_mean(np.array([np.nan])))


@given(masks, masks, hnp.arrays(np.bool_, (3, 6, 5)))
def test_ignored_voxels_count_like_voxels_that_are_not_there(prediction, reference, ignored):
    whole = overlaps.count(prediction, np.where(ignored, np.uint8(IGNORE), reference), 1)
    kept = overlaps.count(prediction[~ignored], reference[~ignored], 1)
    for one, other in zip(whole, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_last_class_that_fits_is_not_taken_for_ignored():
    reference = np.array([[[254, 254, IGNORE, 0]]], np.uint8)
    counts = overlaps.count(np.array([[[254, 0, 254, 254]]], np.uint8), reference, 254)
    assert [int(c[-1]) for c in counts] == [1, 2, 2]


def whole(prediction, reference, probability=None, spacing=(1.0, 1.0, 1.0), classes=1, tolerance=1.0):
    if probability is None:
        probability = (prediction > 0).astype(np.float32)
    return measurement.measure(prediction, reference, probability, spacing, classes, tolerance, width=10.0)


def test_every_metric_the_gate_knows_is_in_the_table_in_one_order():
    assert list(METRICS)[:14] == list(MetricName.__args__)
    empty = np.zeros((1, 2, 2), np.uint8)
    assert list(whole(empty, empty).values) == list(METRICS)
    assert set(EMPTY) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("case", ["both empty", "missed", "false alarm"])
def test_every_metric_follows_the_convention_for_empty_masks(name, case):
    nothing = np.zeros((1, 4, 3), np.uint8)
    something = nothing.copy()
    something[0, 0, :2] = 1
    expected = dict(zip(("both empty", "missed", "false alarm"), EMPTY[name], strict=True))
    result = whole(something if case == "false alarm" else nothing, something if case == "missed" else nothing)
    np.testing.assert_allclose(result.values[name], [expected[case]], rtol=1e-7)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "formula" not in metric.one_empty])
def test_the_rule_that_is_printed_is_the_one_that_holds(name):
    rules = {
        "0": (0, 0),
        "image diagonal": (5, 5),
        "missed: 0; false alarm: left out": (0, NAN),
        "missed: 1; false alarm: left out": (1, NAN),
    }
    np.testing.assert_array_equal(EMPTY[name][1:], rules[METRICS[name].one_empty])


@given(hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 2)))
def test_a_perfect_case_has_the_best_value_of_every_metric(labels):
    labels[0, 0, :3] = 0, 1, 2
    for name, values in whole(labels, labels, classes=2).values.items():
        np.testing.assert_allclose(values, METRICS[name].best, atol=1e-12, err_msg=name)


@given(
    masks, masks, hnp.arrays(np.bool_, (3, 6, 5)), hnp.arrays(np.float32, (3, 6, 5), elements=st.floats(0, 1, width=32))
)
def test_what_is_said_of_ignored_voxels_changes_nothing(prediction, reference, ignored, probability):
    reference = np.where(ignored, np.uint8(IGNORE), reference)
    one = whole(prediction, reference, probability)
    other = whole(
        np.where(ignored, 1 - prediction, prediction), reference, np.where(ignored, 1 - probability, probability)
    )
    for name in METRICS:
        np.testing.assert_array_equal(one.values[name], other.values[name], err_msg=name)
    np.testing.assert_array_equal(one.whole, other.whole)
    assert one.whole.sum() == (~ignored).sum()
    assert sum(one.confusion) == one.band.sum() <= (~ignored).sum()


@given(masks, masks)
def test_spacing_scales_distances_and_volumes(prediction, reference):
    one, two = (whole(prediction, reference, spacing=(s, s, 3 * s), tolerance=s).values for s in (1.0, 2.0))
    for name, factor in (("hd95", 2), ("assd", 2), ("nsd", 1), ("volume_error_ml", 8), ("volume_error_relative", 1)):
        np.testing.assert_allclose(two[name], factor * one[name], rtol=1e-9, err_msg=name)


def test_without_a_spacing_lengths_are_pixels_and_there_is_no_volume():
    prediction, reference = np.zeros((2, 1, 20, 20), np.uint8)
    reference[0, 5:15, 5:15] = prediction[0, 5:15, 8:18] = 1
    with_mm, without = (whole(prediction, reference, spacing=s).values for s in ((1.0, 1.0, 1.0), None))
    assert np.isnan(without.pop("volume_error_ml"))
    for name, values in without.items():
        np.testing.assert_array_equal(values, with_mm[name], err_msg=name)


def test_a_picture_is_measured_in_two_dimensions():
    prediction, reference = np.zeros((2, 1, 20, 20), np.uint8)
    reference[0, 5:15, 5:15], prediction[0, 6:14, 6:14] = 1, 1
    values = whole(prediction, reference, spacing=(7.0, 1.0, 1.0)).values
    assert values["hd95"] == pytest.approx(np.sqrt(2))
    assert values["assd"] == pytest.approx((28 + 32 + 4 * np.sqrt(2)) / 64)
    assert values["volume_error_ml"] == pytest.approx(0.007 * 36)
    assert values["hd95"][0] < whole(prediction * 0, reference).values["hd95"][0] == pytest.approx(np.hypot(20, 20))


def test_classes_have_values_of_their_own_and_lesions_are_summed():
    reference = np.array([[[1, 0, 1, 0, 2, 0, 0, 0]]], np.uint8)
    prediction = np.array([[[1, 0, 0, 0, 0, 0, 0, 3]]], np.uint8)
    result = whole(prediction, reference, classes=4)
    np.testing.assert_allclose(result.values["dice"], [2 / 3, 0, 0, NAN])
    np.testing.assert_allclose(result.values["hd95"], [2 * 0.95, np.hypot(1, 8), np.hypot(1, 8), NAN])
    assert [len(one.sizes) for one in result.lesions] == [2, 1, 0, 0]
    assert {name: values.tolist() for name, values in result.values.items() if name.startswith("lesion")} == {
        "lesion_recall": [pytest.approx(1 / 3)],
        "lesion_precision": [0.5],
        "lesion_f1": [pytest.approx(0.4)],
    }
    assert result.confusion == (1, 1, 2, 4)


def test_bad_input_is_told_in_a_line():
    labels = np.zeros((1, 2, 2), np.uint8)
    with pytest.raises(InputError, match=r"shapes .*D,H,W"):
        whole(labels, labels[:, :1])
    for probability in (2.0, np.nan):
        with pytest.raises(InputError, match="probability ranges from"):
            whole(labels, labels, np.full(labels.shape, probability, np.float32))


def test_training_does_not_load_what_only_evaluation_needs():
    program = "import sys, segpipe.metrics; print(sorted({'scipy', 'skimage', 'sklearn'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_labels_are_counted_by_reference_and_prediction():
    reference, predicted = np.array([[0, 1, 1, 2, IGNORE]], np.uint8), np.array([[0, 1, 2, 2, 1]], np.uint8)
    found = overlaps.confusion(predicted, reference, 3)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


def test_mean_iou_is_scikit_learns_over_the_labels_that_are_there():
    rng = np.random.default_rng(0)
    reference, predicted = rng.integers(0, 4, (2, 500)).astype(np.uint8)
    expected = jaccard_score(reference, predicted, average="macro")
    assert overlaps.mean_iou(overlaps.confusion(predicted, reference, 3)) == pytest.approx(expected)
    assert overlaps.mean_iou(overlaps.confusion(predicted, reference, 9)) == pytest.approx(expected)
    nowhere = np.where(predicted == 3, 4, predicted).astype(np.uint8)
    expected = jaccard_score(reference, nowhere, average="macro", labels=range(4), zero_division=0)
    assert overlaps.mean_iou(overlaps.confusion(nowhere, reference, 4)) == pytest.approx(expected)
