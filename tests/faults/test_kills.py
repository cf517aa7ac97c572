"""Processes killed at any moment of a chain: all end, nothing torn is left, and the next start ends as if nothing had
happened.

With -s a table of what came of each moment is printed; it is also written to the file that $SEGPIPE_FAULT_TABLE names.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import numpy as np
import pytest
from chains import GONE_SECONDS, Chain, Driver, chain, check_whole, name_of, new_chain, results, undisturbed

from segpipe.files.project import PROJECT

__all__ = ["chain", "undisturbed"]

MOMENTS = 20
STAGES = ("start", "preprocess", "train", "epochs", "evaluate", "register")
TARGETS = ("driver", "step", "group")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
REST_SECONDS = 120.0  # that the rest of a chain may take
HALF_A_STORE = 200_000  # bytes: MLflow's empty database has about a million
HEAD = ("stage", "after s", "under way", "signal", "to", "first start", "gone after s", "left RUNNING", "next start")


@dataclass(frozen=True)
class Moment:
    """When a signal comes, as a share of a stage's time, which one, and to whom."""

    stage: str
    share: float
    target: str
    number: Signals


def moments() -> list[Moment]:
    """Three or four in every stage, at random in it; every signal to every target at least twice."""
    rng = np.random.default_rng(6)
    pairs = [(target, number) for target in TARGETS for number in SIGNALS]
    return [
        Moment(STAGES[n % len(STAGES)], float(rng.uniform()), *pairs[pair % len(pairs)])
        for n, pair in enumerate(rng.permutation(MOMENTS))
    ]


def reached(chain: Chain, driver: Driver, stage: str) -> bool:
    """Whether a stage has begun: a step has a process, or its training checkpoints."""
    if stage == "epochs":
        return bool(chain.checkpoints())
    return stage == "start" or driver.step(stage) is not None


@pytest.fixture(scope="module")
def table():
    """Rows of what came of each moment, shown when all are through."""
    rows: list[tuple[str, ...]] = []
    yield rows
    ordered = sorted(rows, key=lambda row: (STAGES.index(row[0]), float(row[1])))
    lines = [HEAD, ("---",) * len(HEAD), *ordered]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    sys.stdout.write(f"\n{text}")
    if "SEGPIPE_FAULT_TABLE" in os.environ:
        Path(os.environ["SEGPIPE_FAULT_TABLE"]).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def seconds(undisturbed, tmp_path_factory):
    """How long each stage of a chain takes that nothing disturbs, each step in a process of its own."""
    chain = new_chain(tmp_path_factory.mktemp("timed"))
    driver, began = chain.start(), []
    for stage in STAGES:
        driver.until(lambda stage=stage: reached(chain, driver, stage))
        began.append(time.monotonic())
    assert driver.end() == 0, driver.shown()
    assert results(chain) == undisturbed[1]
    return dict(zip(STAGES, np.diff([*began, time.monotonic()]), strict=True))


def hit(chain: Chain, driver: Driver, moment: Moment, length: float) -> tuple[str, str]:
    """Send the signal in its stage, or as soon as the next one begins; seconds since the stage began, and the step."""
    driver.until(lambda: reached(chain, driver, moment.stage))
    later = STAGES[STAGES.index(moment.stage) + 1 :][:1]
    began = time.monotonic()
    while time.monotonic() - began < moment.share * length and not any(reached(chain, driver, s) for s in later):
        if moment.stage == "register" and driver.step() is None:
            break
        time.sleep(0.02)
    step = driver.until(driver.step) if moment.target == "step" else driver.step()
    under_way = name_of(step) if step else "no step"
    assert driver.process.poll() is None, f"it had ended before the signal came\n{driver.shown()}"
    if step is not None and moment.target == "step":
        step.send_signal(moment.number)
    elif moment.target == "group":
        os.killpg(driver.process.pid, moment.number)
    else:
        driver.process.send_signal(moment.number)
    return f"{time.monotonic() - began:.1f}", under_way


def disturb(chain: Chain, moment: Moment, length: float) -> tuple[str, ...]:
    """Start a chain and disturb it; what came of it. With a step that had done its work the chain goes on."""
    driver = chain.start()
    where = hit(chain, driver, moment, length)
    goes_on = moment.target == "step" and finished(chain, driver, where[1])
    gone = chain.seconds_until_gone(REST_SECONDS if goes_on else GONE_SECONDS)
    code, left = driver.end(), chain.running()
    assert str(PROJECT / "steps") not in driver.shown(), driver.shown()  # no traceback but of a Python that only starts
    if moment.target == "step":
        assert (code == 0) == goes_on, driver.shown()
    else:
        assert code == 128 + moment.number, driver.shown()
    assert left == [] or (moment.number == signal.SIGKILL and moment.target != "step"), driver.shown()
    first = f"exit {code}: {driver.told()}".replace(str(chain.home), "HOME")
    ended = "went on" if goes_on else f"{gone:.1f}"
    return *where, moment.number.name, moment.target, first, ended, " ".join(left) or "none"


def finished(chain: Chain, driver: Driver, name: str) -> bool:
    """Whether a step, once its process is gone, has finished."""
    driver.until(lambda: driver.process.poll() is not None or driver.step(name) is None)
    return bool(chain.runs(name, "FINISHED"))


def told_again(shown: str) -> str:
    """What a second start says it does."""
    reused = [line.partition(":")[0] for line in shown.splitlines() if ": reuse " in line]
    continued = ["training continued"] if "continues run" in shown else []
    return "; ".join([f"reuses {', '.join(reused) or 'nothing'}", *continued, "equal"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(), ids=lambda m: f"{m.stage}-{m.share:.2f}-{m.number.name}-{m.target}")
def test_after_any_signal_at_any_moment_the_next_start_ends_as_if_nothing_had_happened(
    undisturbed, seconds, chain, table, tmp_path, moment
):
    outcome = disturb(chain, moment, seconds[moment.stage])
    again = chain.finish()
    check_whole(chain, undisturbed[1], tmp_path / "checked")
    table.append((moment.stage, *outcome, told_again(again)))


@pytest.mark.slow
def test_a_store_whose_creation_was_killed_is_created_by_the_next_start(undisturbed, chain, tmp_path):
    driver = chain.start()
    driver.until(lambda: any(path.stat().st_size > HALF_A_STORE for path in chain.home.glob("*.db*")))
    driver.process.kill()
    driver.end()
    chain.finish()
    check_whole(chain, undisturbed[1], tmp_path / "checked")


@pytest.mark.slow
def test_a_signal_to_a_step_that_has_done_its_work_does_not_undo_it(chain):
    driver = chain.start("--until=preprocess")
    driver.until(driver.step)  # before, the store is being made
    (run,) = driver.until(lambda: chain.runs("preprocess", "FINISHED"))
    driver.step("preprocess").send_signal(signal.SIGTERM)
    driver.end()
    assert chain.client.get_run(run.info.run_id).info.status == "FINISHED", driver.shown()
    assert f"preprocess: reuse {run.info.run_id}" in chain.finish("--plan")


def test_a_training_killed_and_a_driver_asked_to_end_leave_what_the_next_start_completes(undisturbed, chain, tmp_path):
    first = chain.start()
    first.until(chain.checkpoints)
    first.step("train").send_signal(signal.SIGKILL)
    assert first.end(10) == 1, first.shown()
    assert "train failed" in first.told()
    assert [run.info.status for run in chain.runs("train") + chain.runs("pipeline")] == ["FAILED", "FAILED"]
    second = chain.start()
    second.until(lambda: "continues run" in second.shown())
    second.process.send_signal(signal.SIGTERM)
    chain.seconds_until_gone()
    assert second.end() == 143, second.shown()
    assert chain.running() == []
    third = chain.finish("--in-process")
    assert "continues run" in third
    assert "preprocess: reuse" in third
    check_whole(chain, undisturbed[1], tmp_path / "checked")
