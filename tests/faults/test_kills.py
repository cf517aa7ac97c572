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
from chains import Chain, Driver, chain, check_whole, name_of, new_chain, results, undisturbed

__all__ = ["chain", "undisturbed"]

MOMENTS = 20
TARGETS = ("driver", "step", "group")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
HEAD = ("after s", "under way", "signal", "to", "first start", "gone after s", "left RUNNING", "next start")


@dataclass(frozen=True)
class Moment:
    """When a signal comes, as a share of an undisturbed chain's time, which one, and to whom."""

    share: float
    target: str
    number: Signals


def moments() -> list[Moment]:
    """Spread over the whole chain; every signal to every target at least twice."""
    rng = np.random.default_rng(6)
    pairs = [(target, number) for target in TARGETS for number in SIGNALS]
    shares = 0.95 * (np.arange(MOMENTS) + rng.uniform(size=MOMENTS)) / MOMENTS
    return [
        Moment(float(share), *pairs[n % len(pairs)]) for share, n in zip(shares, rng.permutation(MOMENTS), strict=True)
    ]


@pytest.fixture(scope="module")
def table():
    """Rows of what came of each moment, shown when all are through."""
    rows: list[tuple[str, ...]] = []
    yield rows
    lines = [HEAD, ("---",) * len(HEAD), *sorted(rows, key=lambda row: float(row[0]))]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    sys.stdout.write(f"\n{text}")
    if "SEGPIPE_FAULT_TABLE" in os.environ:
        Path(os.environ["SEGPIPE_FAULT_TABLE"]).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def seconds(undisturbed, tmp_path_factory):
    """How long a chain takes, each step in a process of its own, that nothing disturbs."""
    chain, began = new_chain(tmp_path_factory.mktemp("timed")), time.monotonic()
    chain.finish()
    assert results(chain) == undisturbed[1]
    return time.monotonic() - began


def hit(driver: Driver, moment: Moment) -> str:
    """Send the signal; which step was under way, or nothing where the chain had ended."""
    step = driver.step()
    while moment.target == "step" and step is None and driver.process.poll() is None:
        time.sleep(0.05)
        step = driver.step()
    under_way = name_of(step) if step else "no step"
    if driver.process.poll() is not None:
        return ""
    if moment.target == "group":
        os.killpg(driver.process.pid, moment.number)
    elif step is not None and moment.target == "step":
        step.send_signal(moment.number)
    else:
        driver.process.send_signal(moment.number)
    return under_way


def disturb(chain: Chain, moment: Moment, seconds: float) -> tuple[str, ...]:
    """Start a chain and disturb it; what came of it."""
    driver = chain.start()
    time.sleep(moment.share * seconds)
    under_way = hit(driver, moment)
    gone = chain.seconds_until_gone()
    code, left = driver.end(), chain.running()
    killed = moment.number == signal.SIGKILL
    if not under_way:
        assert code == 0, driver.shown()
    elif moment.target == "step":
        assert code != 0, driver.shown()
        assert left == []
        assert "Traceback" not in driver.shown()
    else:
        assert code == 128 + moment.number, driver.shown()
        assert killed or left == [], driver.shown()
    first = f"exit {code}: {driver.told()}" if under_way else "had ended"
    return under_way, first.replace(str(chain.home), "HOME"), f"{gone:.1f}", " ".join(left) or "none"


def told_again(shown: str) -> str:
    """What a second start says it does."""
    lines = [line for line in shown.splitlines() if ": reuse " in line]
    reused = [line.partition(":")[0] for line in lines]
    continued = ["training continued"] if "continues run" in shown else []
    return "; ".join([f"reuses {', '.join(reused) or 'nothing'}", *continued, "equal"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(), ids=lambda m: f"{m.share:.2f}-{m.number.name}-{m.target}")
def test_after_any_signal_at_any_moment_the_next_start_ends_as_if_nothing_had_happened(
    undisturbed, seconds, chain, table, tmp_path, moment
):
    under_way, first, gone, left = disturb(chain, moment, seconds)
    again = chain.finish()
    check_whole(chain, undisturbed[1], tmp_path / "checked")
    at = f"{moment.share * seconds:.1f}"
    table.append((at, under_way, moment.number.name, moment.target, first, gone, left, told_again(again)))


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
