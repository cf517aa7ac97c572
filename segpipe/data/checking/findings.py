"""What is wrong, or odd, with a data set as a whole: rules over the facts of its cases."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from segpipe.config.sections import Config
from segpipe.data.checking import duplicates
from segpipe.data.checking.facts import Facts
from segpipe.data.manifest import SPLITS

Severity = Literal["error", "warning", "note"]
FEW = 8  # cases: with fewer nothing is said of what is usual
VISIBLE = 0.15  # median correlation of masks and images from which masks can be told to fit
MISFIT, NEARER, MOVED = 0.25, 2.0, 0.02  # of that median; of the correlation as they lie; of the longer side
OPPOSITE = 0.5  # of the median, with the other sign
ODD = 6.0  # robust standard deviations of the foreground's log odds
SCALE = 1.4826  # of the median absolute deviation, for a normal distribution (Rousseeuw and Croux, 1993)
LEAST_SPREAD = 0.1  # log odds
MOST_LOST = 0.5  # share of a class in a case, and of the cases
NAMED = 3


class Finding(NamedTuple):
    """A line that says what is found and how to mend it, and the cases that it is about."""

    severity: Severity
    told: str
    cases: tuple[str, ...] = ()


Findings = Iterator[Finding]
Rule = Callable[[Sequence[Facts], Config], Findings]


def of_set(facts: Sequence[Facts], config: Config) -> list[Finding]:
    """All findings, in the order of the rules, whatever the order of the facts."""
    ordered = sorted(facts, key=lambda one: one.case)
    return [found for rule in RULES for found in rule(ordered, config)]


def _repeated(facts: Sequence[Facts], config: Config) -> Findings:
    """The same picture twice: an error on two sides of a split, for the test set then shows what was trained on."""
    torn: Severity = "error" if config.check.duplicates == "error" else "warning"
    groups = [(group, "have the same image") for group in duplicates.same(facts)]
    groups += [(group, "look the same") for group in duplicates.alike(facts, config.check.distance)]
    for group, what in groups:
        cases = [facts[index] for index in group]
        splits = {case.split for case in cases}
        sides = " and ".join(split for split in SPLITS if split in splits)
        if len(splits) > 1:
            mend = "remove one, or give them one patient in the table of cases"
            yield _found(torn, cases, f"{what}, in {sides}: {mend} (check.duplicates=warn goes on)")
        elif len({case.patient for case in cases}) > 1:
            yield _found("warning", cases, f"{what} and count as two patients: remove one, or give them one patient")


def _values(facts: Sequence[Facts], config: Config) -> Findings:
    """Binary masks whose foreground is another value in some than in others."""
    if config.data.classes:
        return
    highest = {case.case: case.values[-1] for case in facts if len(case.values) > 1}
    usual, *others = Counter(highest.values()).most_common() or [(0.0, 0)]
    for value, _ in others:
        cases = [case for case in facts if highest.get(case.case) == value]
        told = f"foreground is {value:g}, but {usual[0]:g} in {usual[1]} others: read alike; if not, see data.classes"
        yield _found("warning", cases, told)


def _inverted(facts: Sequence[Facts], config: Config) -> Findings:
    """Masks that say of their image the opposite of what others say of theirs."""
    usual, odds = _usual_fit(facts), _log_odds(facts)
    if config.data.classes or abs(usual) < VISIBLE or len(odds) < FEW:
        return
    middle = float(np.median(list(odds.values())))
    cases = [
        case
        for case in facts
        if case.fit
        and case.fit.here * np.sign(usual) < -OPPOSITE * abs(usual)
        and abs(odds[case.case] + middle) < abs(odds[case.case] - middle)
    ]
    if cases:
        yield _found("error", cases, "mask inverted: its background is what others call foreground; invert it")


def _misplaced(facts: Sequence[Facts], _config: Config) -> Findings:
    """Masks that fit their image better elsewhere, or not at all."""
    usual = _usual_fit(facts)
    if abs(usual) < VISIBLE or len(facts) < FEW:
        return
    for case in facts:
        if case.fit is None:
            continue
        here, best, (down, right) = case.fit
        moved = max(abs(down), abs(right)) > MOVED * max(case.shape[1:])
        if moved and abs(best) > NEARER * abs(here) and abs(best) > OPPOSITE * abs(usual):
            told = f"mask seems shifted: it fits its image {_moved(down, right)}; look at it"
            yield _found("warning", [case], told)
        elif -OPPOSITE * abs(usual) < here * np.sign(usual) < MISFIT * abs(usual):
            told = (
                f"mask does not follow its image (correlation {here:.2f}, usually {usual:.2f}): that of another case?"
            )
            yield _found("warning", [case], told)


def _lost(facts: Sequence[Facts], config: Config) -> Findings:
    """Classes that are too small for the size that the network sees."""
    size = "x".join(str(side) for side in config.preprocess.size)
    for label, name in enumerate(config.data.class_names):
        there = [case for case in facts if case.voxels[label]]
        gone = [case for case in there if not case.kept[label]]
        most = [case for case in there if 0 < case.kept[label] < MOST_LOST]
        if gone:
            severity: Severity = "error" if len(gone) > MOST_LOST * len(there) else "warning"
            told = f"{name} vanishes at preprocess.size={size}; a larger size, or fit: patch, keeps it"
            yield _found(severity, gone, told, len(there))
        if most:
            told = f"{name} loses more than half of its area at preprocess.size={size}"
            yield _found("warning", most, told, len(there))


def _missing(facts: Sequence[Facts], config: Config) -> Findings:
    """Classes that no case has, or none of a split."""
    for label, name in enumerate(config.data.class_names):
        having = {case.split for case in facts if case.voxels[label]}
        lacking = [split for split in SPLITS if split not in having and any(case.split == split for case in facts)]
        if not having:
            yield Finding("warning", f"class {name}: in no mask; leave it out of data.classes, or look at the masks")
        elif lacking:
            told = f"class {name}: in no case of {' or '.join(lacking)}; another seed, or a column split, deals it out"
            yield Finding("warning", told)


def _shares(facts: Sequence[Facts], _config: Config) -> Findings:
    """Masks with much more, or much less, foreground than usual."""
    odds = _log_odds(facts)
    if len(odds) < FEW:
        return
    values = np.array(list(odds.values()))
    middle = np.median(values)
    spread = max(SCALE * float(np.median(np.abs(values - middle))), LEAST_SPREAD)
    cases = [case for case in facts if case.case in odds and abs(odds[case.case] - middle) > ODD * spread]
    usual = 1 / (1 + np.exp(-middle))
    for case in cases:
        told = f"{_share(case):.1%} of its voxels are foreground, usually {usual:.1%}; look at the mask"
        yield _found("warning", [case], told)


def _empty(facts: Sequence[Facts], _config: Config) -> Findings:
    cases = [case for case in facts if not any(case.voxels)]
    if cases:
        yield _found("note", cases, "mask empty: right where there is nothing to find", len(facts))


RULES: tuple[Rule, ...] = (_repeated, _inverted, _lost, _misplaced, _values, _missing, _shares, _empty)


def _found(severity: Severity, cases: Sequence[Facts], told: str, of: int = 0) -> Finding:
    names = [case.case for case in cases]
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    number = f"{len(names)} of {of} cases" if of else f"{len(names)} cases"
    subject = f"case {names[0]}" if len(names) == 1 else f"{number} ({shown})"
    return Finding(severity, f"{subject}: {told}", tuple(names))


def _moved(down: int, right: int) -> str:
    return (
        f"{abs(down)} pixels {'down' if down > 0 else 'up'} and {abs(right)} to the {'right' if right > 0 else 'left'}"
    )


def _usual_fit(facts: Sequence[Facts]) -> float:
    """The median correlation of masks and images; 0 where there is none."""
    known = [case.fit.here for case in facts if case.fit]
    return float(np.median(known)) if known else 0.0


def _share(case: Facts) -> float:
    return float(sum(case.voxels) / np.prod(case.shape))


def _log_odds(facts: Sequence[Facts]) -> dict[str, float]:
    """The log odds of the foreground of each case that has some, and not only that."""
    shares = {case.case: _share(case) for case in facts}
    return {name: float(np.log(share / (1 - share))) for name, share in shares.items() if 0 < share < 1}
