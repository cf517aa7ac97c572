from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.config.sections import SplitConfig
from segpipe.data.splits import assign
from segpipe.data.volume import Case
from segpipe.errors import InputError


def case(name, patient, site="s", split=None):
    return Case(name, patient, site, split, (Path(name),), Path(name))


@given(st.integers(3, 60), st.integers(1, 4), st.integers(0, 100))
def test_no_patient_is_on_two_sides_and_no_side_is_empty(patients, sites, seed):
    cases = [case(f"c{i}", f"p{i % patients}", f"s{i % patients % sites}") for i in range(2 * patients)]
    sides = assign(cases, SplitConfig(), seed)
    assert set(sides) == {c.patient for c in cases}
    assert set(sides.values()) == {"train", "val", "test"}


def test_shares_hold_overall_and_at_each_site():
    cases = [case(f"c{i}", f"p{i}", f"s{i % 3}") for i in range(60)]
    sides = assign(cases, SplitConfig(val=0.2, test=0.3), seed=1)
    for site in ("s0", "s1", "s2"):
        here = [sides[c.patient] for c in cases if c.site == site]
        assert (here.count("val"), here.count("test")) == (4, 6)


def test_order_of_cases_does_not_matter_and_the_seed_does():
    cases = [case(f"c{i}", f"p{i}") for i in range(20)]
    assert assign(cases, SplitConfig(), 0) == assign(cases[::-1], SplitConfig(), 0)
    assert assign(cases, SplitConfig(), 0) != assign(cases, SplitConfig(), 1)


def test_a_given_split_is_honoured():
    cases = [case("a", "p", split="test"), case("b", "q", split="train"), case("c", "r", split="val")]
    assert assign(cases, SplitConfig(), 0) == {"p": "test", "q": "train", "r": "val"}


@pytest.mark.parametrize(
    ("cases", "told"),
    [
        ([case("a", "p"), case("b", "q")], "2 patient"),
        ([case("a", "p", split="test"), case("b", "p", split="train"), case("c", "q", split="val")], "'p' is in both"),
        ([case("a", "p", split="test"), case("b", "q", split="train"), case("c", "r")], "'c' has no split"),
    ],
)
def test_what_cannot_be_split_is_refused(cases, told):
    with pytest.raises(InputError, match=told):
        assign(cases, SplitConfig(min_patients=3 if told.startswith("2") else 1), 0)


def test_one_patient_is_enough_where_that_is_allowed():
    assert set(assign([case("a", "p")], SplitConfig(min_patients=1), 0)) == {"p"}
