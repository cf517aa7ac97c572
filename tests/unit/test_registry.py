import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from segpipe.evaluation.decision import Decision
from segpipe.registry import champions, record
from segpipe.registry.record import APPROVED, PROMOTED, ROLLED_BACK, Move

NOON = "2026-11-22T12:00:00.000000Z"


def moves(*steps):
    """Moves from `(version, from, how)`, a second apart."""
    return [Move(f"2026-11-22T12:00:{n:02}.000000Z", *step, "Ada", "") for n, step in enumerate(steps)]


def version(number, **tags):
    return ModelVersion("m", number, 0, tags=[ModelVersionTag(k, v) for k, v in tags.items()])


@pytest.mark.parametrize(
    ("steps", "deleted", "line"),
    [
        ([], "", ""),
        ([("1", "", PROMOTED), ("2", "1", PROMOTED)], "", "12"),
        ([("1", "", PROMOTED), ("2", "1", PROMOTED), ("3", "2", APPROVED), ("2", "3", ROLLED_BACK)], "", "12"),
        ([("1", "", PROMOTED), ("2", "1", PROMOTED), ("1", "2", ROLLED_BACK), ("2", "1", APPROVED)], "", "12"),
        ([("1", "", PROMOTED), ("2", "1", PROMOTED), ("3", "2", PROMOTED)], "2", "13"),
        ([("1", "", PROMOTED), ("2", "1", PROMOTED), ("1", "2", PROMOTED)], "2", "1"),
        ([("3", "2", PROMOTED)], "", "23"),
        ([("2", "3", ROLLED_BACK)], "", "32"),
    ],
)
def test_the_line_of_champions_is_what_rollbacks_have_left(steps, deleted, line):
    assert record.line(moves(*steps), set("123") - set(deleted)) == list(line)


@given(st.lists(st.one_of(st.just("back"), st.integers(1, 5).map(str)), max_size=20))
def test_a_rollback_undoes_the_last_promotion(steps):
    told, stack = [], []
    for step in steps:
        if step == "back" and len(stack) > 1:
            gone = stack.pop()
            told.append((stack[-1], gone, ROLLED_BACK))
        elif step != "back" and step not in stack:
            told.append((step, stack[-1] if stack else "", PROMOTED))
            stack.append(step)
    assert record.line(moves(*told), set("12345")) == stack


def test_a_move_reads_back_and_fits_a_tag():
    move = Move(NOON, "2", "1", PROMOTED, "Ada", "ä\n\"'" * 4000, "superiority", "r" * 32)
    text = move.to_json()
    assert len(text) <= 5000
    assert json.loads(text)["from"] == "1"
    assert Move.read(text).why == move.why[: record.LONGEST_WHY]
    assert Move.read(text).to_json() == text


def test_a_moment_is_after_the_last_move_even_of_a_clock_that_is_ahead():
    assert record.moment([]) <= datetime.now(UTC).strftime(record.TIME)
    ahead = Move("2999-12-31T23:59:58.999999Z", "1", "", PROMOTED, "", "")
    assert record.moment([ahead]) == "2999-12-31T23:59:59.000000Z"


@pytest.mark.parametrize(
    ("decision", "approval", "verdict"),
    [
        (Decision(True, "superiority", ("better",)), "auto", "promoted"),
        (Decision(True, "superiority", ("better",)), "manual", "waiting for approval"),
        (Decision(False, "superiority", ("not better",)), "auto", "kept"),
        (Decision(False, "superiority", ("not better",)), "manual", "kept"),
        (Decision(False, ROLLED_BACK, ("was rolled back",)), "auto", "rolled back"),
    ],
)
def test_what_becomes_of_a_version(decision, approval, verdict):
    assert champions.verdict(decision, approval) == verdict
    tags = champions.decision_tags(decision, approval, "1", "Ada", "run", NOON)
    assert (tags["decision"], tags["decision_against"], tags["decided_by"]) == (verdict, "1", "Ada")


def test_only_what_would_be_promoted_is_withheld_after_a_rollback():
    back = version(2, rolled_back="rolled back to version 1 on 2026-11-22 by Ada")
    better, worse = Decision(True, "superiority", ("better",)), Decision(False, "floors", ("too low",))
    held = champions.withheld(better, back)
    assert (held.promote, held.rule) == (False, ROLLED_BACK)
    assert held.reasons == (
        "version 2 was rolled back to version 1 on 2026-11-22 by Ada; approve it to bring it back", "better",
    )  # fmt: skip
    assert champions.withheld(worse, back) is worse
    assert champions.withheld(better, version(2)) is better
    assert champions.withheld(better, None) is better
