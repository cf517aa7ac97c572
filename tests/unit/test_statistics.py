import numpy as np
import pytest

from segpipe.statistics import bootstrap_mean


def test_nan_is_counted_but_left_out():
    interval = bootstrap_mean([0.5, np.nan, 0.7], ["a", "b", "c"], 500, seed=0)
    assert (interval.n, interval.n_valid) == (3, 2)
    assert interval.mean == pytest.approx(0.6)
    assert interval.low <= interval.mean <= interval.high


def test_no_value_at_all_gives_nan():
    interval = bootstrap_mean([np.nan], ["a"], 100, seed=0)
    assert np.isnan(interval.mean)
    assert (interval.n, interval.n_valid) == (1, 0)


def test_same_seed_same_interval():
    values, patients = np.linspace(0, 1, 20), np.arange(20)
    assert bootstrap_mean(values, patients, 500, 3) == bootstrap_mean(values, patients, 500, 3)
    assert bootstrap_mean(values, patients, 500, 3) != bootstrap_mean(values, patients, 500, 4)


def test_cases_of_one_patient_widen_the_interval():
    values = np.repeat(np.linspace(0, 1, 10), 10)
    alone = bootstrap_mean(values, np.arange(100), 2000, 0)
    clustered = bootstrap_mean(values, np.repeat(np.arange(10), 10), 2000, 0)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_interval_of_a_normal_mean_is_near_the_textbook_one():
    values = np.random.default_rng(0).normal(0, 1, 400)
    interval = bootstrap_mean(values, np.arange(400), 4000, 0)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
