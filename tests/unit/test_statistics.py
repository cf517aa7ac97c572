import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segpipe.metrics import statistics
from segpipe.metrics.statistics import bootstrap_mean, by_group, holm, letters, paired, tertiles

# Darwin's maize: crossed minus self-fertilised plants of 15 pots, in eighths of an inch (Fisher 1935, section 17)
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


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


def test_chunks_change_no_number(monkeypatch):
    values, patients = np.random.default_rng(0).random((2, 100)), np.arange(100) // 3
    whole = bootstrap_mean(values[0], patients, 501, 0), paired(*values, patients, 501, 0)
    monkeypatch.setattr("segpipe.metrics.statistics.CHUNK", 34 * 7 + 3)
    assert (bootstrap_mean(values[0], patients, 501, 0), paired(*values, patients, 501, 0)) == whole


def test_memory_is_bounded():
    values = np.random.default_rng(0).random(2000)
    tracemalloc.start()
    bootstrap_mean(values, np.arange(2000), 10_000, 0)
    paired(values, values[::-1], np.arange(2000), 10_000, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # 160 MB for the numbers of all resamples at once


# Paired differences


def test_fisher_s_permutation_test_of_darwin_s_maize():
    found = paired(DARWIN, [0] * 15, range(15), 200, 0)
    assert found.mean == pytest.approx(314 / 15)
    assert found.p == 863 / 2**15
    assert paired(DARWIN, [0] * 15, range(15), 200, 0, alternative="two-sided").p == 1726 / 2**15
    assert found.low < found.mean < found.high


def test_all_signs_give_scipy_s_exact_p():
    differences = np.random.default_rng(1).normal(0.5, 1, 10)
    for alternative in ("greater", "two-sided"):
        oracle = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        )
        assert paired(differences, np.zeros(10), range(10), 100, 0, alternative=alternative).p == oracle.pvalue


def test_drawn_signs_come_near_the_exact_p():
    gains = np.random.default_rng(2).normal(0.35, 1, 18)
    signs = np.array(list(itertools.product((-1, 1), repeat=18)), dtype=np.int8)
    exact = ((signs @ gains) >= gains.sum() - 1e-9).mean()
    assert paired(gains, np.zeros(18), range(18), 20_000, 0).p == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(20_000))


def test_drawn_signs_never_give_zero():
    assert paired(np.ones(40), np.zeros(40), range(40), 499, 0).p == 1 / 500


def test_the_least_p_is_that_of_all_patients_gaining():
    for n in range(1, 9):
        assert paired(np.ones(n), np.zeros(n), range(n), 100, 0).p == 0.5**n


def test_patients_without_a_difference_change_no_p():
    gains = [0.1, 0.2, -0.05, 0.3]
    alone = paired(gains, [0] * 4, range(4), 100, 0)
    among = paired([*gains, *[0.5] * 20], [0] * 4 + [0.5] * 20, range(24), 100, 0)
    assert (alone.p, alone.wilcoxon) == (among.p, among.wilcoxon)
    assert (alone.patients, among.patients) == (4, 24)


def test_cases_of_a_patient_flip_together():
    ours, theirs = [0.9, 0.9, 0.9, 0.7], [0.8, 0.8, 0.8, 0.6]
    assert paired(ours, theirs, ["a", "a", "b", "b"], 100, 0).p == 1 / 4
    assert paired(ours, theirs, ["a", "b", "c", "d"], 100, 0).p == 1 / 16


def test_a_pair_needs_both_values():
    found = paired([0.5, np.nan, 0.7, 0.9], [0.4, 0.1, np.nan, 0.6], ["a", "b", "c", "a"], 100, 0)
    assert (found.n, found.patients) == (2, 1)
    assert found.mean == pytest.approx(0.2)


def test_without_a_pair_nothing_is_shown():
    found = paired([np.nan], [0.5], ["a"], 100, 0)
    assert np.isnan(found[:3]).all()
    assert found[3:] == (1.0, 1.0, 0, 0)


def test_equal_models_show_nothing():
    assert paired([0.3, 0.4], [0.3, 0.4], ["a", "b"], 100, 0)[3:5] == (1.0, 1.0)


def test_equal_gains_tie_in_spite_of_rounding():
    ours, theirs = np.array([0.3, 0.7, 0.9]), np.array([0.1, 0.5, 0.7])
    assert len(set(ours - theirs)) > 1
    assert paired([*ours, 0.1], [*theirs, 0.3], range(4), 100, 0).p == 5 / 16


def test_a_margin_shifts_the_hypothesis_and_nothing_else():
    ours, theirs = np.full(6, 0.79), np.full(6, 0.8)
    for margin, p in ((0.0, 1.0), (0.01, 1.0), (0.02, 1 / 64)):
        found = paired(ours, theirs, range(6), 100, 0, margin)
        assert (found.p, found.wilcoxon) == (p, p)
        assert found.mean == pytest.approx(-0.01)


def test_a_margin_weighs_each_case():
    found = paired([0.0, 0.0, 0.3], [0.1, 0.1, 0.2], ["a", "a", "b"], 100, 0, margin=0.15)
    assert found.p == 1 / 4  # sums with the margin: 0.1 and 0.25


def test_signed_ranks_are_scipy_s_on_means_of_patients():
    gains = np.array([0.3, -0.1, 0.2, 0.5, 0.4])
    oracle = stats.wilcoxon(gains, alternative="greater").pvalue
    ours, owners = np.repeat(gains, 2) + np.tile([0.05, -0.05], 5), np.repeat(range(5), 2)
    assert paired(ours, np.zeros(10), owners, 100, 0).wilcoxon == pytest.approx(oracle)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=22), st.integers(0, 2**31 - 1))
def test_one_side_and_the_other_make_at_least_one(gains, seed):
    zeros, patients = np.zeros(len(gains)), range(len(gains))
    up, down = paired(gains, zeros, patients, 200, seed), paired(zeros, gains, patients, 200, seed)
    assert 0 < up.p <= 1
    assert up.mean == -down.mean
    if np.count_nonzero(gains) <= 15:
        assert up.p + down.p >= 1
        both = paired(gains, zeros, patients, 200, seed, alternative="two-sided").p
        assert both == pytest.approx(min(1, 2 * min(up.p, down.p)))


# Many comparisons


def counted(parts, wholes):
    return statistics.Counted(np.array(parts), np.array(wholes))


def test_a_rise_in_share_by_hand():
    """Exchanging the second patient's counts or the first's gives rises of 2/4, 0, 0 and -2/4."""
    ours, theirs = counted([1, 1, 0], [1, 1, 2]), counted([0, 0, 0], [1, 1, 2])
    assert statistics.rise_in_share(ours, theirs, list("abc"), 100, 0) == (0.5, 0.25)
    assert statistics.rise_in_share(theirs, ours, list("abc"), 100, 0) == (-0.5, 1.0)


def test_counts_of_a_patient_are_exchanged_together():
    ours, theirs = counted([1] * 8, [1] * 8), counted([0] * 8, [1] * 8)
    assert statistics.rise_in_share(ours, theirs, list("abcdefgh"), 100, 0)[1] == 1 / 2**8
    assert statistics.rise_in_share(ours, theirs, list("aaaabbbb"), 100, 0)[1] == 1 / 2**2


def test_shares_of_different_wholes_are_exchanged_with_them():
    """One false lesion of ten against none of two: exchanged, it is the other way round."""
    ours, theirs = counted([1, 0], [8, 2]), counted([0, 0], [1, 1])
    rise, p = statistics.rise_in_share(ours, theirs, list("ab"), 100, 0)
    assert rise == pytest.approx(0.1)
    assert p == 0.5  # 1/10, 1/9, -1/3, -1/4


def test_equal_shares_show_no_rise_and_a_share_of_nothing_is_none():
    same = counted([3, 0], [7, 0])
    assert statistics.rise_in_share(same, same, list("ab"), 100, 0) == (0.0, 1.0)
    nothing = counted([0, 0], [0, 0])
    assert statistics.rise_in_share(nothing, nothing, list("ab"), 100, 0) == (0.0, 1.0)
    assert statistics.rise_in_share(counted([1, 0], [2, 0]), nothing, list("ab"), 100, 0) == (0.5, 0.5)


def test_drawn_exchanges_come_near_the_exact_p(monkeypatch):
    draw = np.random.default_rng(1)
    ours, theirs = (counted(draw.integers(0, high, 12), np.full(12, 6)) for high in (5, 4))
    exact = statistics.rise_in_share(ours, theirs, np.arange(12), 20_000, 0)
    monkeypatch.setattr(statistics, "EXACT", 5)
    drawn = statistics.rise_in_share(ours, theirs, np.arange(12), 20_000, 0)
    assert drawn[0] == exact[0]
    assert drawn[1] == pytest.approx(exact[1], abs=0.01)
    assert drawn[1] != exact[1]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers(p):
    adjusted = holm(p)
    assert all(given <= after <= 1 for given, after in zip(p, adjusted, strict=True))
    pairs = sorted(zip(p, adjusted, strict=True))
    assert all(one[1] <= other[1] for one, other in itertools.pairwise(pairs))
    assert min(adjusted) == min(1, len(p) * min(p))


@pytest.mark.parametrize(
    ("names", "different", "told"),
    [
        ("", [], {}),
        ("A", [], {"A": "a"}),
        ("ABC", [], {"A": "a", "B": "a", "C": "a"}),
        ("ABC", ["AC"], {"A": "a", "B": "ab", "C": "b"}),
        ("ABC", ["CA", "BA"], {"A": "a", "B": "b", "C": "b"}),
        ("ABC", ["AB", "AC", "BC"], {"A": "a", "B": "b", "C": "c"}),
        ("ABCD", ["AD", "BD", "AC"], {"A": "a", "B": "ab", "C": "bc", "D": "c"}),
        ("ABC", ["AB"], {"A": "a", "B": "b", "C": "ab"}),
    ],
)
def test_letters_of_known_examples(names, different, told):
    assert letters(list(names), {(pair[0], pair[1]) for pair in different}) == told


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda p: p[0] < p[1])))
def test_models_share_a_letter_exactly_where_they_do_not_differ(pairs):
    names = [f"m{n}" for n in range(8)]
    told = letters(names, {(names[b], names[a]) for a, b in pairs})
    assert told["m0"].startswith("a")
    for a, b in itertools.combinations(range(8), 2):
        assert bool(set(told[names[a]]) & set(told[names[b]])) is ((a, b) not in pairs)


def test_letters_go_on_after_z():
    names = [f"m{n}" for n in range(28)]
    told = letters(names, set(itertools.combinations(names, 2)))
    assert (told["m0"], told["m25"], told["m26"], told["m27"]) == ("a", "z", "a1", "b1")


# Groups


def test_groups_have_an_interval_and_their_patients():
    cases = pd.DataFrame(
        {
            "patient": ["p", "p", "q", "r", "s"],
            "site": ["B", "B", "B", "A", "A"],
            "dice": [0.2, 0.4, 0.6, np.nan, 0.9],
            "hd95": [1.0, 2.0, 3.0, np.nan, np.nan],
        }
    )
    table = by_group(cases, "site", ["dice", "hd95"], 200, 0)
    assert list(table.columns) == ["group", "metric", "mean", "low", "high", "n", "n_valid", "patients"]
    assert table[["group", "metric"]].to_numpy().tolist() == [
        *(["A", "dice"], ["A", "hd95"]),
        *(["B", "dice"], ["B", "hd95"]),
    ]
    assert table[["n", "n_valid", "patients"]].to_numpy().tolist() == [[2, 1, 1], [2, 0, 0], [3, 3, 2], [3, 3, 2]]
    whole = bootstrap_mean([0.2, 0.4, 0.6], ["p", "p", "q"], 200, 0)
    assert tuple(table.loc[2, ["mean", "low", "high"]]) == whole[:3]
    assert math.isnan(table.loc[1, "mean"])


def test_no_case_no_group():
    empty = pd.DataFrame({"patient": [], "site": [], "dice": []})
    assert list(by_group(empty, "site", ["dice"], 100, 0).columns)[:2] == ["group", "metric"]


@pytest.mark.parametrize(
    ("volumes", "labels"),
    [
        ([3, 1, 2], ["large", "small", "medium"]),
        ([0, 5, 0, 1, 3], ["none", "large", "none", "small", "medium"]),
        ([1, 2, 3, 4], ["small", "small", "medium", "large"]),
        ([1, 1, 1, 2], ["small", "small", "small", "large"]),
        ([7, 7, 7], ["small"] * 3),
        ([2, 9], ["medium", "medium"]),
        ([0, 9], ["none", "medium"]),
        ([np.nan, 1, 2, 3], ["none", "small", "medium", "large"]),
        ([], []),
    ],
)
def test_tertiles_of_volumes(volumes, labels):
    assert tertiles(volumes) == labels


@given(st.lists(st.integers(1, 10**6), min_size=3, unique=True))
def test_thirds_of_different_volumes_are_of_one_size(volumes):
    found = [tertiles(volumes).count(size) for size in ("small", "medium", "large")]
    assert max(found) - min(found) <= 1
