"""Which patients are for training, validation and test: whole patients, balanced over sites."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from segpipe.config.sections import SplitConfig
from segpipe.data.manifest import SPLITS, Split
from segpipe.data.volume import Case
from segpipe.errors import InputError


def assign(cases: Sequence[Case], config: SplitConfig, seed: int) -> dict[str, Split]:
    """Each patient's split: the one that the data declares, or drawn from `seed`. Where it declares training and test
    alone, patients for validation are drawn from those for training, split.val of all.

    Raises InputError for too few patients, a patient in two splits, or a split declared for some cases only.
    """
    patients = sorted({case.patient for case in cases})
    if len(patients) < config.min_patients:
        raise InputError(
            f"{len(patients)} patient(s): at least {config.min_patients} are needed (split.min_patients), "
            "so that training, validation and test share none"
        )
    if not any(case.split for case in cases):
        return _draw(cases, config, seed)
    sides: dict[str, Split] = {}
    for case in cases:
        split = next((split for split in SPLITS if split == case.split), None)
        if split is None:
            raise InputError(f"case '{case.name}' has no split, but others do; give all or none")
        known = sides.setdefault(case.patient, split)
        if known != split:
            raise InputError(f"patient '{case.patient}' is in both {known} and {split} (case '{case.name}')")
    if carves_validation(cases) and config.val:
        training = [case for case in cases if sides[case.patient] == "train"]
        share = min(config.val * len(sides) / max(1, len({case.patient for case in training})), 0.5)
        sides |= _draw(training, SplitConfig(val=share, test=0.0, min_patients=1), seed)
    return sides


def carves_validation(cases: Sequence[Case]) -> bool:
    """Whether the data declares splits, but none for validation."""
    declared = {case.split for case in cases}
    return "train" in declared and "val" not in declared


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
