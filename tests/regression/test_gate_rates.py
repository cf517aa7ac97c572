"""The gate's rates of error on simulated test sets; the table is in docs/explanation/gate.md."""

import math

import pytest

from benchmarks.gate import MARGIN, MISSES, SCORES, TRUTHS, coverage, promoted, refused
from segpipe.config.sections import GateConfig

pytestmark = pytest.mark.slow
ALPHA = GateConfig().alpha
REPEATS = 400


def above(rate, repeats):
    """A rate this high is seen in less than 1 of 1000 simulations where `rate` is the truth (normal approximation)."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / repeats)


EXCHANGEABLE = [truth for truth in TRUTHS if truth.exchangeable]


@pytest.mark.parametrize("patients", [6, 20])
@pytest.mark.parametrize("truth", EXCHANGEABLE, ids=lambda truth: truth.title)
def test_of_equal_models_few_are_promoted(truth, patients):
    assert promoted(truth, patients, 0.0, "superiority", REPEATS).gate <= above(ALPHA, REPEATS)


@pytest.mark.parametrize("truth", EXCHANGEABLE, ids=lambda truth: truth.title)
def test_of_models_worse_by_the_margin_few_are_promoted(truth):
    assert promoted(truth, 10, -MARGIN, "non_inferiority", REPEATS, seed=1).gate <= above(ALPHA, REPEATS)


def test_few_large_losses_break_the_test_but_not_by_much():
    (truth,) = [truth for truth in TRUTHS if truth.title.startswith("few large losses")]
    found = promoted(truth, 10, 0.0, "superiority", REPEATS)
    assert ALPHA < found.gate < 0.12 < found.means


def test_the_larger_mean_alone_promotes_half_of_equal_models():
    assert promoted(TRUTHS[0], 10, 0.0, "superiority", REPEATS).means == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("patients", "gain", "least"), [(10, 0.05, 0.7), (20, 0.05, 0.95), (50, 0.02, 0.7)])
def test_a_gain_that_is_there_is_seen(patients, gain, least):
    assert promoted(TRUTHS[0], patients, gain, "superiority", REPEATS).gate >= least


@pytest.mark.parametrize("patients", [6, 20, 50])
@pytest.mark.parametrize("misses", [m for m in MISSES if not m.more], ids=lambda misses: misses.title)
def test_of_better_models_that_miss_as_many_lesions_few_are_refused(misses, patients):
    found = refused(misses, patients, REPEATS)
    assert found.gate <= above(ALPHA, REPEATS)
    assert found.gate <= found.means


def test_a_model_that_misses_many_more_lesions_is_seen():
    (much,) = [misses for misses in MISSES if misses.more == 0.2]
    assert refused(much, 50, REPEATS).gate >= 0.88


@pytest.mark.parametrize(("patients", "least"), [(10, 0.86), (20, 0.88), (50, 0.92)])
@pytest.mark.parametrize("scores", [s for s in SCORES if "missed" not in s.title], ids=lambda scores: scores.title)
def test_the_interval_holds_the_truth_where_no_case_is_missed(scores, patients, least):
    assert coverage(scores, patients, 1000) >= least
