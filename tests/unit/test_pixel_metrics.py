import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sklearn

from segpipe.metrics import pixels
from segpipe.metrics.pixels import BINS

probabilities = hnp.arrays(np.float32, 60, elements=st.floats(0, 1, width=32))
labels = hnp.arrays(np.bool_, 60)
s = np.s_


def sample(size=20_000, seed=0):
    """Overlapping classes and probabilities that promise too much."""
    rng = np.random.default_rng([seed, 0x91])
    reference = rng.random(size) < 0.3
    return np.clip(rng.normal(0.35 + 0.3 * reference, 0.2), 0, 1).astype(np.float32), reference


@given(probabilities, labels)
def test_scores_of_a_band_agree_with_scikit_learn(probability, reference):
    reference[:2] = False, True
    prediction = probability >= 0.5
    scores = pixels.scores(probability, prediction, reference)
    assert scores.pop("ece") == pixels.calibration_error(probability, reference)
    assert scores == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(reference, prediction),
            "precision": sklearn.precision_score(reference, prediction, zero_division=0),
            "recall": sklearn.recall_score(reference, prediction),
            "f1": sklearn.f1_score(reference, prediction),
            "roc_auc": sklearn.roc_auc_score(reference, probability),
            "pr_auc": sklearn.average_precision_score(reference, probability),
        },
        abs=1e-6,
    )
    tn, fp, fn, tp = sklearn.confusion_matrix(reference, prediction).ravel()
    assert pixels.confusion(prediction, reference) == (tp, fp, fn, tn)


def test_a_band_of_one_label_has_no_curve_and_an_empty_one_nothing():
    some = np.linspace(0, 1, 5, dtype=np.float32)
    scores = pixels.scores(some, some > 0.5, np.ones(5, bool))
    assert {name for name, value in scores.items() if np.isnan(value)} == {"roc_auc", "pr_auc"}
    assert scores["recall"] == 0.4
    nothing = np.zeros(0, bool)
    assert all(np.isnan(v) for v in pixels.scores(some[:0], nothing, nothing).values())


@given(probabilities, labels)
def test_calibration_error_is_the_mean_gap_of_fifteen_bins(probability, reference):
    edges = np.arange(1, 15) / 15
    index = np.digitize(probability, edges)
    assume(np.abs(probability[:, None] - edges).min() > 1e-6)
    gaps = [
        (index == b).sum() * abs(probability[index == b].mean(dtype=np.float64) - reference[index == b].mean())
        for b in np.unique(index)
    ]
    assert pixels.calibration_error(probability, reference) == pytest.approx(sum(gaps) / 60, abs=1e-6)


def test_calibration_error_is_what_a_promise_is_off_by():
    reference = np.arange(100) < 30
    for promise, error in ((0.3, 0.0), (0.5, 0.2), (1.0, 0.7), (0.0, 0.3)):
        assert pixels.calibration_error(np.full(100, promise, np.float32), reference) == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7)])
@pytest.mark.parametrize("width", [0.5, 3.0, 1000.0])
def test_a_band_is_what_lies_within_its_width_of_the_reference(spacing, width):
    reference = np.zeros((6, 30, 25), bool)
    reference[2, 4, 5] = reference[3, 20:22, 18] = True
    points, every = (np.argwhere(m) * spacing for m in (reference, np.ones_like(reference)))
    nearest = np.linalg.norm(every[:, None] - points[None], axis=2).min(axis=1).reshape(reference.shape)
    np.testing.assert_array_equal(pixels.band(reference, spacing, width), nearest <= width)


def test_no_reference_no_band():
    assert not pixels.band(np.zeros((4, 4), bool), (1.0, 1.0), 10.0).any()


def test_a_voxel_exactly_at_the_width_is_in_the_band_whatever_the_header_rounded():
    spacing = float(np.float32(0.4))
    reference = np.zeros((1, 12), bool)
    reference[0, 0] = True
    assert pixels.band(reference, (spacing, spacing), 2.0).sum() == 6


@given(probabilities, labels, labels)
def test_histograms_count_every_voxel_once_and_add_up(probability, reference, where):
    probability[0], where[0] = 1.0, True
    whole = pixels.histograms(probability, reference, where)
    assert (whole.dtype, whole.shape, whole.sum()) == (np.int64, (2, BINS), where.sum())
    assert whole[int(reference[0]), -1] >= 1
    np.testing.assert_array_equal(whole.sum(axis=1), [(where & ~reference).sum(), (where & reference).sum()])
    halves = [pixels.histograms(probability[part], reference[part], where[part]) for part in (s[:20], s[20:])]
    np.testing.assert_array_equal(sum(halves), whole)


def test_curves_from_histograms_have_the_areas_scikit_learn_finds():
    probability, reference = sample()
    histogram = pixels.histograms(probability, reference, np.ones(reference.shape, bool))
    false, true = pixels.roc(histogram)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(sklearn.roc_auc_score(reference, probability), abs=1e-3)
    recall, precision = pixels.pr(histogram)
    assert (recall[0], precision[0], recall[-1]) == (0, 1, 1)
    assert precision[-1] == pytest.approx(reference.mean())
    area = np.sum(np.diff(recall) * precision[1:])
    assert area == pytest.approx(sklearn.average_precision_score(reference, probability), abs=1e-3)


def test_binned_probabilities_give_exact_curves():
    _, reference = sample(3000)
    probability = ((np.random.default_rng(3).integers(0, 10, 3000) + reference) / 10.0).astype(np.float32)
    histogram = pixels.histograms(probability, reference, np.ones(3000, bool))
    false, true = pixels.roc(histogram)
    assert np.trapezoid(true, false) == pytest.approx(sklearn.roc_auc_score(reference, probability), abs=1e-9)
    thresholds, dice = pixels.dice_by_threshold(histogram)
    for k in (0, 250, 500, 950, 999):
        expected = sklearn.f1_score(reference, probability >= np.float32(thresholds[k]))
        assert dice[k] == pytest.approx(expected, abs=1e-9)


def test_dice_by_threshold_is_exact_to_a_bin():
    probability, reference = sample()
    thresholds, dice = pixels.dice_by_threshold(pixels.histograms(probability, reference, np.ones(20_000, bool)))
    assert len(thresholds) == len(dice) == BINS
    for k in range(0, BINS, 97):
        exact = sklearn.f1_score(reference, probability >= thresholds[k])
        assert dice[k] == pytest.approx(exact, abs=1e-3)


def test_reliability_agrees_with_the_exact_error_within_a_bin():
    probability, reference = sample()
    found = pixels.reliability(pixels.histograms(probability, reference, np.ones(20_000, bool)))
    assert len(found.voxels) == 15
    assert found.voxels.sum() == 20_000
    error = np.nansum(found.voxels * np.abs(found.probability - found.observed)) / 20_000
    assert error == pytest.approx(pixels.calibration_error(probability, reference), abs=2 / BINS)
    filled = found.voxels > 0
    assert np.isnan(found.observed[~filled]).all()
    assert (np.diff(found.probability[filled]) > 0).all()


def test_empty_histograms_have_no_curve():
    nothing = np.zeros((2, BINS), np.int64)
    assert np.isnan(pixels.roc(nothing)).all()
    assert np.isnan(pixels.pr(nothing)[0]).all()
    assert np.isnan(pixels.dice_by_threshold(nothing)[1]).all()
    assert np.isnan(pixels.reliability(nothing).observed).all()
