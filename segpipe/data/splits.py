"""Who is trained on, chosen on and tested on: whole patients, balanced over sites."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from segpipe.config import SplitConfig
from segpipe.data.volume import Case
from segpipe.errors import InputError
from segpipe.manifest import SPLITS, Split


def assign(cases: Sequence[Case], config: SplitConfig, seed: int) -> dict[str, Split]:
    """Each patient's split. A split given by the data is honoured; otherwise it is drawn from `seed`.

    Raises InputError for too few patients, a patient on two sides, or a split given for some cases only.
    """
    patients = sorted({case.patient for case in cases})
    if len(patients) < config.min_patients:
        raise InputError(
            f"{len(patients)} patient(s): at least {config.min_patients} are needed (split.min_patients), "
            "so that training, validation and test share none"
        )
    sides = given(cases)
    return sides if sides else _draw(cases, config, seed)


def given(cases: Sequence[Case]) -> dict[str, Split]:
    """The split the data itself declares, or nothing. Raises InputError where it is partial or torn."""
    declared = [case for case in cases if case.split]
    if not declared:
        return {}
    if len(declared) < len(cases):
        missing = next(case.name for case in cases if not case.split)
        raise InputError(f"case '{missing}' has no split, but others do; give all or none")
    sides: dict[str, str] = {}
    for case in declared:
        known = sides.setdefault(case.patient, str(case.split))
        if known != case.split:
            raise InputError(f"patient '{case.patient}' is in both {known} and {case.split} (case '{case.name}')")
    return {patient: next(s for s in SPLITS if s == side) for patient, side in sides.items()}


def _draw(cases: Sequence[Case], config: SplitConfig, seed: int) -> dict[str, Split]:
    """Deal the shuffled patients, site after site, each to the split that is furthest behind its share."""
    by_site: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        by_site[case.site].add(case.patient)
    rng = np.random.default_rng([seed, 0x5EED])
    shares: dict[Split, float] = {"test": config.test, "val": config.val, "train": 1 - config.val - config.test}
    sides: dict[str, Split] = {}
    overall = dict.fromkeys(shares, 0)
    for site in sorted(by_site):
        here = dict.fromkeys(shares, 0)
        patients = [p for p in sorted(by_site[site]) if p not in sides]
        for dealt, patient in enumerate(rng.permutation(patients), start=1):
            total = len(sides) + 1

            def behind(split: Split, dealt: int = dealt, total: int = total) -> float:
                local = shares[split] * dealt - here[split]
                return local + shares[split] * total - overall[split] if shares[split] else float("-inf")

            chosen = max(shares, key=behind)
            sides[str(patient)] = chosen
            here[chosen] += 1
            overall[chosen] += 1
    return _none_empty(sides, shares)


def _none_empty(sides: dict[str, Split], shares: dict[Split, float]) -> dict[str, Split]:
    """Move a patient into a split that should have some and got none, from the largest split."""
    for split in shares:
        if shares[split] and split not in sides.values():
            counts = {s: list(sides.values()).count(s) for s in shares}
            largest = max(counts, key=lambda s: counts[s])
            if counts[largest] > 1:
                sides[max(p for p, s in sides.items() if s == largest)] = split
    return sides
