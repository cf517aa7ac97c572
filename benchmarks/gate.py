"""How often the gate is wrong, on simulated test sets of known truth; coverage and time of its intervals.

    python -m benchmarks.gate [--repeats 2000]

Baselines: promoting whatever has the larger mean, on the same draws; scipy.stats.bootstrap on the same cases.
What the tables show and what follows from them: docs/explanation/gate.md.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from segpipe.config.sections import GateConfig
from segpipe.evaluation.gate import Footprint, decide
from segpipe.metrics.statistics import bootstrap_mean

Values = NDArray[np.float64]
NOISE = 0.05  # standard deviation of the difference of two models on one case
MARGIN = 0.01
SAMPLES = 500  # resamples a test: the tests are exact up to 15 patients and valid with any number beyond
PATIENTS = (6, 10, 20, 50)
FREE = Footprint(0.0, 0.0)
NO_LESIONS = dict.fromkeys(("lesions", "lesions_found", "lesions_predicted", "lesions_false"), 0)


class Cohort(NamedTuple):
    """Cases of so many patients: who each belongs to, and how well it can be segmented at all (a Dice)."""

    owner: NDArray[np.int64]
    ease: Values


def cohort(rng: np.random.Generator, patients: int, most: int) -> Cohort:
    """1 to `most` cases a patient; ease is skewed as Dice is, Beta(8, 2), half of it the patient's own."""
    owner = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    shared, own = rng.beta(8, 2, patients)[owner], rng.beta(8, 2, len(owner))
    return Cohort(owner, (shared + own) / 2)


def normal(rng: np.random.Generator, cases: Cohort) -> Values:
    """Independent symmetric noise of both models: they are exchangeable."""
    return NOISE * rng.normal(size=len(cases.ease))


def skewed(rng: np.random.Generator, cases: Cohort) -> Values:
    """Both models fail now and then, alone, by an exponential loss: heavy tails, still exchangeable."""
    ours, theirs = rng.exponential(NOISE, (2, len(cases.ease))) * (rng.random((2, len(cases.ease))) < 0.5)
    return np.asarray(theirs - ours)


def of_the_patient(rng: np.random.Generator, cases: Cohort) -> Values:
    """Most of the noise is the patient's: cases of one patient gain or lose together."""
    patient = rng.normal(size=cases.owner.max() + 1)[cases.owner]
    return NOISE * (math.sqrt(0.8) * patient + math.sqrt(0.2) * rng.normal(size=len(cases.ease)))


def few_large_losses(rng: np.random.Generator, cases: Cohort) -> Values:
    """Equal means, but many small gains and few large losses: not exchangeable, the test's assumption is broken."""
    return np.asarray(NOISE * (1 - rng.exponential(1, len(cases.ease))))


def few_large_gains(rng: np.random.Generator, cases: Cohort) -> Values:
    """The mirror image: many small losses and few large gains."""
    return -few_large_losses(rng, cases)


class Truth(NamedTuple):
    """How two models of equal mean differ on a case, and the most cases of a patient."""

    title: str
    differences: Callable[[np.random.Generator, Cohort], Values]
    most: int
    exchangeable: bool


TRUTHS = (
    Truth("normal, 1 case a patient", normal, 1, True),
    Truth("heavy tails, 1 case a patient", skewed, 1, True),
    Truth("normal, 1-4 cases", normal, 4, True),
    Truth("the patient's own, 1-4 cases", of_the_patient, 4, True),
    Truth("few large losses, 1 case a patient", few_large_losses, 1, False),
    Truth("few large gains, 1 case a patient", few_large_gains, 1, False),
)


def tables(rng: np.random.Generator, truth: Truth, patients: int, gain: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test cases of a challenger whose mean Dice is truly better by `gain`, and of the champion.

    The challenger's HD95 is better in every case, so that under non-inferiority the Dice alone decides.
    """
    cases = cohort(rng, patients, truth.most)
    names = {"case": np.arange(len(cases.ease)).astype(str), "patient": cases.owner.astype(str)}
    common = {**names, "reference_voxels": 100, **NO_LESIONS, "elongation": 2.0}
    ours = {"dice": cases.ease + gain + truth.differences(rng, cases), "hd95": rng.random(len(cases.ease))}
    return pd.DataFrame(common | ours), pd.DataFrame(common | {"dice": cases.ease, "hd95": 2.0})


class Rate(NamedTuple):
    """How often the gate decides so, and how often the two means alone would have."""

    gate: float
    means: float


def promoted(truth: Truth, patients: int, gain: float, rule: str, repeats: int, seed: int = 0) -> Rate:
    """Share of simulated test sets on which a challenger truly better by `gain` is promoted."""
    gate = GateConfig(rule=rule, margin=MARGIN, beat_trivial=False)
    passed = larger = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, patients, TRUTHS.index(truth), repeat])
        ours, theirs = tables(rng, truth, patients, gain)
        passed += decide(ours, theirs, gate, FREE, SAMPLES, repeat).promote
        larger += ours["dice"].mean() > theirs["dice"].mean()
    return Rate(passed / repeats, larger / repeats)


class Misses(NamedTuple):
    """Lesions of a patient that two models miss: on average so many lesions, the share that the champion misses, how
    much more the challenger does, and the SD of how hard a patient's are, for both alike.
    """

    title: str
    champion: float
    more: float
    hard: float = 0.1


MISSES = (
    Misses("equal, 5 % missed", 0.05, 0.0),
    Misses("equal, 20 % missed", 0.2, 0.0),
    Misses("equal, 20 %, patients alike", 0.2, 0.0, 0.0),
    Misses("misses 5 % more", 0.2, 0.05),
    Misses("misses 10 % more", 0.2, 0.1),
    Misses("misses 20 % more", 0.2, 0.2),
)


def refused(misses: Misses, patients: int, repeats: int) -> Rate:
    """Share of simulated test sets on which a challenger with a clearly better Dice is refused for missed lesions, and
    how often any rise beyond the margin would have refused it. 1 to 5 lesions a patient.
    """
    gate, by_test, by_share = GateConfig(beat_trivial=False), 0, 0
    for repeat in range(repeats):
        rng = np.random.default_rng([patients, MISSES.index(misses), repeat])
        lesions, names = rng.integers(1, 6, patients), np.arange(patients).astype(str)
        hard = misses.hard * rng.normal(size=patients)
        missed = [
            rng.binomial(lesions, np.clip(share + hard, 0, 1))
            for share in (misses.champion + misses.more, misses.champion)
        ]
        common = {"case": names, "patient": names, "reference_voxels": 100, "elongation": 2.0, "lesions": lesions}
        ours, theirs = (
            pd.DataFrame(
                common | {"dice": dice, "lesions_found": lesions - lost, "lesions_predicted": 0, "lesions_false": 0}
            )
            for dice, lost in zip((0.8, 0.5), missed, strict=True)
        )
        by_test += not decide(ours, theirs, gate, FREE, SAMPLES, repeat).promote
        by_share += (missed[0].sum() - missed[1].sum()) / lesions.sum() > gate.missed_margin
    return Rate(by_test / repeats, by_share / repeats)


class Scores(NamedTuple):
    """A distribution of a case's Dice (or any score) whose mean is known."""

    title: str
    draw: Callable[[np.random.Generator, int], Values]
    mean: float
    most: int


SCORES = (
    Scores("normal, 1 case a patient", lambda rng, n: rng.normal(0.8, 0.1, n), 0.8, 1),
    Scores("Beta(8, 2), 1 case a patient", lambda rng, n: rng.beta(8, 2, n), 0.8, 1),
    Scores("Beta(8, 2), one in ten missed", lambda rng, n: rng.beta(8, 2, n) * (rng.random(n) < 0.9), 0.72, 1),
    Scores("Beta(8, 2) of the patient, 1-4 cases", lambda rng, n: rng.beta(8, 2, n), 0.8, 4),
)


def coverage(scores: Scores, patients: int, repeats: int, seed: int = 0) -> float:
    """Share of simulated test sets whose 95 % interval holds the true mean; a case is its patient's score and noise."""
    held = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, patients, SCORES.index(scores), repeat])
        owner = np.repeat(np.arange(patients), rng.integers(1, scores.most + 1, patients))
        values = scores.draw(rng, patients)[owner] + 0.02 * rng.normal(size=len(owner))
        interval = bootstrap_mean(values, owner, SAMPLES, repeat)
        held += interval.low <= scores.mean <= interval.high
    return held / repeats


def milliseconds(action: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="simulated test sets a cell")
    repeats = parser.parse_args().repeats
    heads = tuple(f"{n} patients" for n in PATIENTS)
    for seed, (rule, gain) in enumerate([("superiority", 0.0), ("non_inferiority", -MARGIN)]):
        rows = []
        for truth in TRUTHS:
            rates = [promoted(truth, n, gain, rule, repeats, seed) for n in PATIENTS]
            rows.append((truth.title, *(f"{100 * r.gate:.1f} ({100 * r.means:.0f})" for r in rates)))
        show(f"{rule}, true gain {gain:+g}: promoted, % (by the larger mean alone)", ("differences", *heads), rows)
    rows = []
    for misses in MISSES:
        rates = [refused(misses, n, repeats) for n in PATIENTS]
        rows.append((misses.title, *(f"{100 * r.gate:.1f} ({100 * r.means:.0f})" for r in rates)))
    show("better Dice, refused for missed lesions, % (by any rise beyond the margin)", ("challenger", *heads), rows)
    gains = (0.01, 0.02, 0.05)
    rows = [
        (f"{gain:+g}", *(f"{100 * promoted(TRUTHS[0], n, gain, 'superiority', repeats).gate:.0f}" for n in PATIENTS))
        for gain in gains
    ]
    show(f"superiority, {TRUTHS[0].title}: promoted, %", ("true gain", *heads), rows)
    sizes = (10, 20, 50)
    rows = [(s.title, *(f"{100 * coverage(s, n, repeats):.1f}" for n in sizes)) for s in SCORES]
    show("95 % interval holds the truth, %", ("scores", *(f"{n} patients" for n in sizes)), rows)
    values = np.random.default_rng(0).random(1000)
    ours = milliseconds(lambda: bootstrap_mean(values, np.arange(1000), 10_000, 0))
    theirs = milliseconds(
        lambda: stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", batch=1000), 3
    )
    print(f"\n10 000 resamples of 1 000 cases: {ours:.0f} ms; scipy.stats.bootstrap {theirs:.0f} ms")
    print(f"{repeats} test sets a cell, {platform.machine()}, numpy {version('numpy')}, scipy {version('scipy')}")


if __name__ == "__main__":
    main()
