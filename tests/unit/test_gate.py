import json
import math

import numpy as np
import pandas as pd
import pytest

from segpipe.config.sections import GateConfig
from segpipe.errors import InputError
from segpipe.evaluation import gate
from segpipe.evaluation.gate import Footprint

SMALL = Footprint(latency_ms=50.0, size_mb=20.0)
RISING = (0.80, 0.81, 0.82, 0.83, 0.84, 0.85)


def cases(*dice, **columns):
    """One case a patient; ten lesions each, all found, nothing false."""
    number = range(len(dice))
    table = {"case": [f"c{i}" for i in number], "patient": [f"p{i}" for i in number], "dice": np.array(dice, float)}
    table |= {"reference_voxels": 100, "lesions": 10, "lesions_found": 10, "lesions_predicted": 10, "lesions_false": 0}
    table |= {"elongation": 2.0, "dice_of_nothing": 0.0, "dice_of_everything": 0.05, "dice_of_mean_mask": 0.08}
    return pd.DataFrame(table | columns)


def decide(challenger, champion, footprint=SMALL, subgroups=(), samples=300, seed=0, of_sites=None, **knobs):
    return gate.decide(challenger, champion, GateConfig(**knobs), footprint, samples, seed, subgroups, of_sites or {})


def demand(decision, name):
    (found,) = [c for c in decision.comparisons if c.name == name]
    return found


# The value, the floors, the patients, the limits: asked of every model


def test_a_first_model_that_meets_every_demand_is_promoted():
    decision = decide(cases(*RISING), None)
    assert (decision.promote, decision.rule) == (True, "first model")
    assert decision.reasons[0].startswith("first model; mean test Dice 0.8250 [")
    assert all(c.passed for c in decision.comparisons)


def test_without_any_value_a_model_is_refused():
    decision = decide(cases(*[math.nan] * 6), None)
    assert (decision.promote, decision.rule) == (False, "value")
    assert decision.reasons[0].startswith("0 of 6 test cases have a Dice (gate.metric)")


def test_a_floor_is_held_against_the_lower_bound_not_the_mean():
    mean_above = cases(0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    decision = decide(mean_above, None, floors={"dice": 0.7})
    assert (decision.promote, decision.rule) == (False, "floors")
    bound = demand(decision, "lower bound of mean Dice")
    assert bound.value == bound.low < 0.7 < 0.75 < bound.high
    assert "mean Dice 0.7500 [" in decision.reasons[0]
    assert decision.reasons[0].endswith("lower bound does not reach gate.floors dice=0.7")
    assert decide(mean_above, None, floors={"dice": 0.6}).promote


def test_a_floor_of_a_metric_where_lower_is_better_is_held_against_the_upper_bound():
    table = cases(*RISING, hd95=[2.0, 3, 4, 5, 6, 7])
    refused = decide(table, None, floors={"hd95": 5.0})
    bound = demand(refused, "upper bound of mean HD95")
    assert refused.rule == "floors"
    assert bound.low < 4.5 < 5 < bound.value == bound.high
    assert "HD95 4.5000 mm [" in refused.reasons[0]
    assert decide(table, None, floors={"hd95": 7.0}).promote


def test_a_floor_that_is_just_reached_is_met():
    assert decide(cases(*[0.7] * 6), None, floors={"dice": 0.7}).promote


def test_a_floor_of_a_metric_without_any_value_is_not_met():
    decision = decide(cases(*RISING, hd95=math.nan), None, floors={"hd95": 5.0})
    assert (decision.promote, decision.rule) == (False, "floors")
    assert decision.record()["comparisons"][1]["value"] is None


def test_too_few_patients_are_refused_however_many_cases_they_have():
    table = cases(*RISING)
    table["patient"] = ["p0", "p0", "p1", "p2", "p3", "p4"]
    decision = decide(table, None)
    assert (decision.promote, decision.rule) == (False, "patients")
    assert decision.reasons[0] == "5 test patients have a Dice, fewer than gate.min_patients 6"
    assert len(decision.reasons) == 4  # five can't show at 2.5 % that a model is better than nothing
    assert decide(table, None, min_patients=5, alpha=0.05).promote


def test_patients_without_a_value_do_not_count():
    assert decide(cases(*RISING[:5], math.nan), None).rule == "patients"


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"max_latency_ms": 49.9}, "median time for a test case 50.0 ms, not within gate.max_latency_ms 49.9"),
        ({"max_size_mb": 19.9}, "file of weights 20.0 MB, not within gate.max_size_mb 19.9"),
    ],
)
def test_a_model_beyond_a_limit_is_refused(knobs, told):
    decision = decide(cases(*RISING), None, **knobs)
    assert (decision.promote, decision.rule, decision.reasons) == (False, "limits", (told,))


def test_a_limit_that_is_just_kept_is_met_and_none_is_listed_where_there_is_none():
    assert decide(cases(*RISING), None, max_latency_ms=50, max_size_mb=20).promote
    assert not [c for c in decide(cases(*RISING), None).comparisons if c.rule == "limits"]


def test_a_time_that_was_not_measured_does_not_keep_a_limit():
    assert decide(cases(*RISING), None, Footprint(math.nan, 1), max_latency_ms=100).rule == "limits"


# Better than what needs no network


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("dice_of_nothing", "predicting nothing"),
        ("dice_of_everything", "predicting everything"),
        ("dice_of_mean_mask", "predicting the mean mask"),
    ],
)
def test_a_model_that_is_not_better_than_a_trivial_one_is_refused(column, name):
    tied = cases(*RISING).assign(**{column: RISING})
    for champion in (None, cases(*(d - 0.1 for d in RISING))):
        decision = decide(tied, champion)
        assert (decision.promote, decision.rule) == (False, "trivial")
        assert decision.reasons == (demand(decision, f"gain in mean Dice over {name}").detail,)
        told = (
            f"gain in mean Dice +0.0000 [+0.0000, +0.0000] over {name}, 6 cases of 6 patients: not shown to be better"
        )
        assert decision.reasons[0].startswith(told)


def test_a_model_that_finds_nothing_where_there_is_nothing_beats_one_that_paints_everything():
    empty = cases(*[math.nan] * 6, dice_of_nothing=math.nan, dice_of_everything=0.0, reference_voxels=0)
    ours = pd.concat([cases(*RISING), empty.assign(case="e" + empty["case"], patient="e" + empty["patient"])])
    gain = demand(decide(ours, None), "gain in mean Dice over predicting everything")
    assert gain.n == 12
    assert gain.value == pytest.approx((sum(RISING) - 6 * 0.05 + 6) / 12)


def test_an_evaluation_of_an_earlier_version_is_to_be_made_again():
    earlier = cases(*RISING).drop(columns="dice_of_everything")
    with pytest.raises(InputError, match=r"challenger's table of test cases has no column dice_of_everything; eval"):
        decide(earlier, None)
    assert decide(earlier, None, beat_trivial=False).promote


# Against a champion: superiority


def test_six_patients_who_all_gain_are_enough():
    decision = decide(cases(*RISING), cases(*(d - 0.01 for d in RISING)))
    gain = demand(decision, "gain in mean Dice")
    assert (decision.promote, decision.rule) == (True, "superiority")
    assert gain.value == pytest.approx(0.01)
    assert (gain.p, gain.n, gain.required) == (1 / 64, 6, 0)
    assert decision.reasons[0].startswith(
        "gain in mean Dice +0.0100 [+0.0100, +0.0100] over the champion, 6 cases of 6"
    )
    assert "better, one-sided p 0.016 for gate.alpha 0.025" in decision.reasons[0]


def test_five_patients_who_all_gain_are_not():
    better, champion = cases(*RISING[:5]), cases(*(d - 0.1 for d in RISING[:5]))
    decision = decide(better, champion, min_patients=5)
    assert not decision.promote
    assert not demand(decision, "gain in mean Dice").passed
    assert demand(decision, "gain in mean Dice").p == 1 / 32
    assert "not shown to be better, one-sided p 0.031 for gate.alpha 0.025" in decision.reasons[0]
    assert decide(better, champion, min_patients=5, alpha=1 / 32).promote


def test_a_larger_mean_with_one_loser_among_six_keeps_the_champion():
    decision = decide(cases(0.9, 0.9, 0.9, 0.9, 0.9, 0.78), cases(*[0.8] * 6))
    gain = demand(decision, "gain in mean Dice")
    assert gain.value == pytest.approx(0.08)
    assert gain.p == 2 / 64
    assert not decision.promote


def test_equal_models_keep_the_champion():
    decision = decide(cases(*RISING), cases(*RISING))
    assert (decision.promote, decision.rule) == (False, "superiority")
    assert demand(decision, "gain in mean Dice").p == 1


def test_a_worse_model_is_refused_with_every_number():
    decision = decide(cases(*(d - 0.1 for d in RISING)), cases(*RISING), max_size_mb=1, floors={"dice": 0.9})
    assert decision.rule == "floors"
    failed = [c.rule for c in decision.comparisons if not c.passed]
    assert failed == ["floors", "limits", "superiority"]
    assert decision.reasons == tuple(c.detail for c in decision.comparisons if not c.passed)


def test_a_metric_where_lower_is_better_gains_by_falling():
    near, far = cases(*RISING, hd95=[1.0, 2, 3, 4, 5, 6]), cases(*RISING, hd95=[2.0, 3, 4, 5, 6, 7])
    decision = decide(near, far, metric="hd95")
    assert decision.promote
    assert demand(decision, "gain in mean HD95").value == pytest.approx(1.0)
    assert "+1.0000 mm" in decision.reasons[0]
    assert not decide(far, near, metric="hd95").promote


def test_patients_not_cases_are_the_units():
    gains = np.repeat([0.05, 0.04, 0.03, 0.02, 0.01], 4)
    ours, theirs = cases(*(0.8 + gains)), cases(*[0.8] * 20)
    ours["patient"] = theirs["patient"] = np.repeat(list("abcde"), 4)
    assert demand(decide(ours, theirs, min_patients=5), "gain in mean Dice").p == 1 / 32
    assert not decide(ours, theirs, min_patients=5).promote


def test_cases_the_champion_was_trained_on_do_not_count():
    ours = cases(*RISING, 0.1, 0.1)
    decision = decide(ours, cases(*(d - 0.01 for d in RISING)))
    assert decision.promote
    shared = demand(decision, "patients shared with the champion")
    assert shared.detail == (
        "6 patients can be compared with the champion, on 6 of 8 cases, at least gate.min_patients 6"
    )


def test_too_few_shared_patients_are_refused():
    decision = decide(cases(*RISING), cases(*(d - 0.1 for d in RISING[:5])))
    assert (decision.promote, decision.rule) == (False, "patients")
    assert decision.reasons[0].startswith("5 patients can be compared with the champion, on 5 of 6 cases")


def test_a_champion_trained_on_all_test_cases_cannot_be_beaten():
    decision = decide(cases(*RISING), cases(*RISING)[:0], subgroups=("patient",))
    assert (decision.promote, decision.rule) == (False, "patients")
    assert decision.reasons[0].startswith("the champion was trained on all 6 test cases")
    assert json.loads(json.dumps(decision.record(), allow_nan=False))


def test_the_order_of_the_rows_does_not_matter():
    ours, theirs = cases(*RISING), cases(*(d - 0.01 * n for n, d in enumerate(RISING)))
    assert decide(ours, theirs).comparisons == decide(ours, theirs[::-1]).comparisons


def test_different_cases_cannot_be_compared():
    with pytest.raises(InputError, match="different cases; evaluate both on one dataset"):
        decide(cases(0.5), cases(0.5, 0.6))


def test_a_table_of_an_older_version_is_named():
    with pytest.raises(InputError, match="the champion's table of test cases has no column lesions, lesions_found"):
        decide(cases(*RISING), cases(*RISING).drop(columns=["lesions", "lesions_found"]))
    with pytest.raises(InputError, match="the challenger's table of test cases has no column hd95"):
        decide(cases(*RISING), None, metric="hd95")


# Empty references


def silent(table, *rows):
    changed = table.copy()
    changed.loc[list(rows), "reference_voxels"] = 0
    return changed


def test_silence_where_there_is_nothing_beats_a_false_alarm():
    ours = silent(cases(*RISING, math.nan), 6)
    alarmed = silent(cases(*RISING, 0.0), 6)
    gain = demand(decide(ours, alarmed), "gain in mean Dice")
    assert (gain.value, gain.n) == (pytest.approx(1 / 7), 7)
    loss = demand(decide(alarmed, ours), "gain in mean Dice")
    assert (loss.value, loss.n) == (pytest.approx(-1 / 7), 7)


def test_silence_of_both_is_no_pair():
    both = silent(cases(*RISING, math.nan), 6)
    assert demand(decide(both, both), "gain in mean Dice").n == 6


def test_silence_counts_as_no_distance_where_lower_is_better():
    ours = silent(cases(*RISING, 0.8, hd95=[3.0] * 6 + [math.nan]), 6)
    alarmed = silent(cases(*RISING, 0.8, hd95=[3.0] * 6 + [70.0]), 6)
    assert demand(decide(ours, alarmed, metric="hd95"), "gain in mean HD95").value == pytest.approx(10.0)


def test_a_value_missing_beside_a_reference_is_no_silence():
    ours, theirs = cases(*RISING, 0.8, nsd=[0.5] * 6 + [math.nan]), cases(*RISING, 0.8, nsd=0.4)
    gain = demand(decide(ours, theirs, metric="nsd"), "gain in mean NSD")
    assert (gain.value, gain.n) == (pytest.approx(0.1), 6)


# Non-inferiority


def with_distance(dice, hd95):
    return cases(*dice, hd95=hd95)


def test_not_worse_and_nearer_is_promoted():
    ours, theirs = with_distance((d - 0.005 for d in RISING), 3.0), with_distance(RISING, 4.0)
    decision = decide(ours, theirs, rule="non_inferiority")
    assert (decision.promote, decision.rule) == (True, "non-inferiority")
    dice, hd95 = decision.reasons
    assert "gain in mean Dice -0.0050" in dice
    assert ": not worse by gate.margin 0.0100, one-sided p 0.016" in dice
    assert "gain in mean HD95 +1.0000 mm [+1.0000, +1.0000]" in hd95
    assert ": better, one-sided p 0.016" in hd95
    assert demand(decision, "gain in mean Dice").required == -0.01


def test_worse_by_the_whole_margin_is_refused():
    ours, theirs = with_distance((d - 0.01 for d in RISING), 3.0), with_distance(RISING, 4.0)
    decision = decide(ours, theirs, rule="non_inferiority")
    assert (decision.promote, decision.rule) == (False, "non-inferiority")
    assert "not shown to be not worse by gate.margin 0.0100, one-sided p 1" in decision.reasons[0]


def test_not_worse_but_no_nearer_is_refused():
    ours, theirs = with_distance((d + 0.1 for d in RISING), 4.0), with_distance(RISING, 4.0)
    decision = decide(ours, theirs, rule="non_inferiority")
    assert (decision.promote, decision.rule) == (False, "non-inferiority")
    assert decision.reasons[0].startswith("gain in mean HD95 +0.0000 mm")


# Guards


def by_site(*sites_and_gains):
    """A champion at 0.7 and a challenger with these gains, case by case."""
    sites, gains = zip(*sites_and_gains, strict=True)
    return cases(*(0.7 + g for g in gains), site=list(sites)), cases(*[0.7] * len(gains))


OF_SITES = {"site": ["a"] * 3 + ["b"] * 3}


@pytest.mark.parametrize(("own", "promoted"), [(0.06, False), (0.049, True), (0.05, True), (-0.3, True)])
def test_a_federation_in_which_a_site_loses_against_its_own_model_is_refused(own, promoted):
    ours = cases(*RISING, **OF_SITES)
    alone = {"a": cases(*(np.array(RISING) + own), **OF_SITES), "b": cases(*(np.array(RISING) - 0.1), **OF_SITES)}
    decision = decide(ours, None, of_sites=alone)
    assert (decision.promote, decision.rule) == (promoted, "first model" if promoted else "sites")
    found = demand(decision, "site a: gain in mean Dice over its own model")
    assert (found.passed, found.n, found.required) == (promoted, 3, -0.05)
    assert found.value == pytest.approx(-own)
    assert ("beyond" if own > 0.05 else "within") + " gate.site_margin 0.0500" in found.detail
    assert demand(decision, "site b: gain in mean Dice over its own model").passed
    assert decide(ours, None, of_sites=alone, site_margin=0.1).promote


def test_a_site_with_few_patients_or_no_model_of_its_own_is_told_and_decides_nothing():
    ours = cases(*RISING, site=["a"] * 4 + ["b"] * 2)
    decision = decide(ours, None, of_sites={"a": None, "b": cases(*(np.array(RISING) + 0.1))})
    assert decision.promote
    unknown, few = (demand(decision, f"site {s}: gain in mean Dice over its own model") for s in "ab")
    assert "not judged, as no model of that site alone was evaluated" in unknown.detail
    assert math.isnan(unknown.value)
    assert few.detail.endswith("2 patients: too few to judge: fewer than gate.subgroup_patients 3")
    assert few.value == pytest.approx(-0.1)


def test_a_subgroup_that_loses_too_much_keeps_the_champion():
    ours, theirs = by_site(*[("A", 0.1)] * 20, *[("B", -0.06)] * 3)
    decision = decide(ours, theirs, subgroups=("site",))
    assert (decision.promote, decision.rule) == (False, "guards")
    assert decision.reasons == (
        "site B: gain in mean Dice -0.0600 [-0.0600, -0.0600], 3 patients: beyond gate.subgroup_margin 0.0500",
    )
    assert demand(decision, "gain in mean Dice").passed
    assert demand(decision, "site A: gain in mean Dice").passed


def test_a_subgroup_may_lose_just_the_margin():
    ours, theirs = by_site(*[("A", 0.1)] * 20, *[("B", -0.05)] * 3)
    assert decide(ours, theirs, subgroups=("site",)).promote


def test_a_subgroup_of_too_few_patients_is_not_looked_at():
    ours, theirs = by_site(*[("A", 0.1)] * 20, *[("B", -0.06)] * 3)
    decision = decide(ours, theirs, subgroups=("site",), subgroup_patients=4)
    assert decision.promote
    assert not [c for c in decision.comparisons if c.name.startswith("site B")]


def test_a_column_with_one_value_has_no_subgroups():
    ours, theirs = cases(*RISING, site="A"), cases(*RISING)
    assert not any("site" in demand.name for demand in decide(ours, theirs, subgroups=("site",)).comparisons)


def test_a_false_alarm_in_a_subgroup_of_empty_references_shows():
    ours = silent(cases(*[0.8] * 20, 0.0, 0.0, 0.0, size=["small"] * 20 + ["none"] * 3), 20, 21, 22)
    theirs = silent(cases(*[0.7] * 20, math.nan, math.nan, math.nan), 20, 21, 22)
    decision = decide(ours, theirs, subgroups=("size",))
    assert demand(decision, "size none: gain in mean Dice").value == -1
    assert not demand(decision, "size none: gain in mean Dice").passed


def test_a_subgroup_nobody_knows_is_named():
    with pytest.raises(InputError, match="subgroups names scanner, but the test cases have no such column"):
        decide(cases(*RISING), cases(*RISING), subgroups=("scanner",))


LOST = {  # of ten lesions a patient, and what the guard says of it
    (0, 0, 0, 0, 1, 2): (True, "0.0500, within gate.KNOB 0.05"),
    (0, 0, 0, 0, 1, 3): (
        True,
        "beyond gate.KNOB 0.05, not shown over 6 patients, one-sided p 0.25 for gate.alpha 0.025",
    ),
    (1, 1, 1, 1, 1, 1): (False, "beyond gate.KNOB 0.05, shown over 6 patients, one-sided p 0.016 for gate.alpha 0.025"),
}


@pytest.mark.parametrize("kind", ["missed", "false"])
@pytest.mark.parametrize("lost", LOST)
def test_a_rise_in_the_share_of_lesions_is_refused_where_it_is_beyond_the_margin_and_shown(lost, kind):
    column, knob = {
        "missed": ({"lesions_found": [10 - n for n in lost]}, "missed_margin"),
        "false": ({"lesions_false": lost}, "false_alarm_margin"),
    }[kind]
    decision = decide(cases(*RISING, **column), cases(*(d - 0.01 for d in RISING)))
    promoted, told = LOST[lost]
    rise = demand(decision, f"rise in share of {kind} lesions")
    assert (decision.promote, rise.passed) == (promoted, promoted)
    assert (rise.value, rise.n) == (pytest.approx(sum(lost) / 60), 60)
    assert rise.detail.startswith(f"{kind} lesions {sum(lost)} of 60, the champion 0 of 60: +0.")
    assert rise.detail.endswith(told.replace("KNOB", knob))
    if not promoted:
        assert (decision.rule, decision.reasons) == ("guards", (rise.detail,))


def test_who_paints_everything_is_no_bar_for_the_lesions_of_a_better_model():
    few = {"lesions": [2, 2, 2, 2, 2, 1], "lesions_found": [2, 2, 2, 2, 2, 0]}
    ours = cases(*RISING, **few, lesions_predicted=[2, 2, 2, 2, 2, 1])
    theirs = cases(*[0.105] * 6, **few | {"lesions_found": few["lesions"]}, lesions_predicted=1)
    decision = decide(ours, theirs)
    assert decision.promote
    told = "missed lesions 1 of 11, the champion 0 of 11: +0.0909, too few to judge: "
    rise = demand(decision, "rise in share of missed lesions")
    assert rise.detail == told + "fewer lesions than gate.min_lesions 20"


def test_lesions_of_few_patients_are_too_few_to_judge():
    of_two = {"lesions": [30, 30, 0, 0, 0, 0], "lesions_predicted": [30, 30, 0, 0, 0, 0]}
    ours = cases(*RISING, **of_two, lesions_found=0)
    decision = decide(ours, cases(*(d - 0.01 for d in RISING), **of_two, lesions_found=of_two["lesions"]))
    assert decision.promote
    told = "too few to judge: 2 patients have lesions, fewer than gate.min_patients 6"
    assert demand(decision, "rise in share of missed lesions").detail.endswith(told)


def test_lesions_do_not_count_where_the_references_are_tubes():
    ours = cases(*RISING, lesions_found=0, elongation=[14.0, 60.0, 60.0, 70.0, 80.0, math.nan])
    theirs = cases(*(d - 0.01 for d in RISING))
    decision = decide(ours, theirs)
    assert decision.promote
    told = demand(decision, "elongation of the references").detail
    assert told.startswith("the references are tubes, in the median 60 times longer than thick, at least 15: lesions")
    assert decide(ours, theirs, lesions=True).rule == "guards"
    assert decide(ours.assign(elongation=2.0), theirs).rule == "guards"
    assert decide(ours.assign(elongation=2.0), theirs, lesions=False).promote


def test_shares_are_of_the_shared_cases_alone():
    ours = cases(*RISING, 0.1, lesions_found=[10] * 6 + [0])
    assert decide(ours, cases(*(d - 0.01 for d in RISING))).promote


def test_a_share_of_no_lesion_is_none():
    empty = {"lesions": 0, "lesions_found": 0, "lesions_predicted": 0}
    decision = decide(cases(*RISING, **empty), cases(*(d - 0.01 for d in RISING), **empty))
    assert decision.promote
    assert demand(decision, "rise in share of missed lesions").value == 0


# What is told


def test_the_decision_is_valid_json_with_what_else_is_remembered():
    told = decide(cases(*RISING), None).record(who="me", interval=(math.nan, 1.0))
    assert (told["promote"], told["rule"], told["who"]) == (True, "first model", "me")
    assert told["interval"] == [None, 1.0]
    assert set(told["comparisons"][0]) == {
        *("name", "value", "required", "passed", "low", "high", "p", "n", "detail", "rule")
    }
    assert told["comparisons"][0]["p"] is None


def test_same_seed_same_decision():
    draw = np.random.default_rng(0)
    ours, theirs = cases(*draw.random(30), site="A"), cases(*draw.random(30))
    asked = {"subgroups": ("site",), "floors": {"dice": 0.1}}
    assert decide(ours, theirs, **asked).record() == decide(ours, theirs, **asked).record()
    assert decide(ours, theirs, **asked).record() != decide(ours, theirs, seed=1, **asked).record()


def test_every_refusal_names_its_knob():
    ours = cases(*(d - 0.2 for d in RISING[:5]), site=list("AAABB"), hd95=9.0, lesions_found=0, lesions_false=10)
    theirs = cases(*RISING[:5], hd95=1.0)
    for rule in ("superiority", "non_inferiority"):
        decision = decide(
            ours, theirs, rule=rule, subgroups=("site",), floors={"dice": 0.9}, max_latency_ms=1, max_size_mb=1
        )
        knobs = ["floors", "min_patients", "alpha", "alpha", "alpha", "min_patients", "max_latency_ms", "max_size_mb"]
        knobs += ["alpha"] * (1 + (rule == "non_inferiority"))
        knobs += ["subgroup_margin"]
        for reason, knob in zip(decision.reasons, knobs, strict=True):
            assert f"gate.{knob}" in reason
