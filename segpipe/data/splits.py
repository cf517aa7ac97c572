"""Which patients are for training, validation and test: whole patients, balanced over sites."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from segpipe.config.sections import SplitConfig
from segpipe.data.manifest import SPLITS, Split
from segpipe.data.volume import Case
from segpipe.errors import InputError


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
    return given(cases) or _draw(cases, config, seed)


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
    wanted: dict[Split, float] = {"test": config.test, "val": config.val, "train": 1 - config.val - config.test}
    shares = {split: share for split, share in wanted.items() if share}
    sides: dict[str, Split] = {}
    for site in sorted(by_site):
        here: list[Split] = []
        for patient in rng.permutation([p for p in sorted(by_site[site]) if p not in sides]):
            chosen = _furthest_behind(shares, here, list(sides.values()))
            sides[str(patient)] = chosen
            here.append(chosen)
    return _none_empty(sides, list(shares))


def _furthest_behind(shares: dict[Split, float], here: list[Split], overall: list[Split]) -> Split:
    """The split that lacks most patients, at this site and over all sites together, once one more is dealt."""
    return max(
        shares,
        key=lambda split: sum(shares[split] * (len(dealt) + 1) - dealt.count(split) for dealt in (here, overall)),
    )


def _none_empty(sides: dict[str, Split], splits: list[Split]) -> dict[str, Split]:
    """Move a patient into each split that should have some and got none, from the largest split."""
    for split in splits:
        dealt = list(sides.values())
        largest = max(splits, key=dealt.count)
        if split not in dealt and dealt.count(largest) > 1:
            sides[max(p for p, s in sides.items() if s == largest)] = split
    return sides
