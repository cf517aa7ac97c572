"""Choose on validation cases how a model's probabilities become labels."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segpipe.config.sections import EvaluateConfig
from segpipe.data import components
from segpipe.data.dataset import Dataset
from segpipe.data.manifest import CaseRecord
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.evaluation import suspects
from segpipe.evaluation.measuring import THRESHOLDS, Mask, Table, by_threshold, mean_of_known
from segpipe.inference.spec import Labelling
from segpipe.metrics import overlaps, pixels
from segpipe.runtime import devices, timing

if TYPE_CHECKING:
    from segpipe.inference.predictor import Predictor

Foreground = NDArray[np.float32]
ROUNDING = 1e-9
AREAS = tuple(2**n for n in range(1, 13))  # pixels or voxels
# Which components are dropped: whether only the largest is kept, and the smallest area.
NOTHING, LARGEST = (False, 0), (True, 0)


class Choice(NamedTuple):
    """A labelling, where its threshold comes from, in words, the mean Dice on the validation set at `THRESHOLDS`, what
    was found of flips and components, each as a sentence without a full stop, the precision all this holds for, and
    the validation cases whose masks are to be looked at first, None where there is no such case.
    """

    labelling: Labelling
    origin: str
    val_dice: Table
    reasons: tuple[str, ...] = ()
    precision: str = "fp32"
    look_first: suspects.Suspects | None = None


def in_precision(predictor: "Predictor", dataset: Dataset, asked: str) -> "Predictor":
    """The predictor in the precision asked for; for `auto` in bf16 where a validation or test case shows that this
    processor is faster with it.
    """
    found = {name: predictor.with_precision(name) for name in ("fp32", "bf16")}
    if asked != "auto":
        return found[asked]
    if not devices.may_gain_from_bf16(asked, predictor.device.type):
        return found["fp32"]
    case = (dataset.where(split="val").cases or dataset.where(split="test").cases)[0]
    image = dataset.stored(case)[0][:, :1].astype(np.float32)
    faster = timing.clearly_faster(partial(_label, found["bf16"], image), partial(_label, found["fp32"], image))
    return found["bf16" if faster else "fp32"]


def _label(predictor: "Predictor", image: Foreground) -> None:
    predictor.label(predictor.fit(image), 0.5)


def choose(predictor: "Predictor", dataset: Dataset, knobs: EvaluateConfig) -> Choice:
    """How the model's probabilities are to become labels: as asked for, or for `auto` by the validation cases of the
    sites that it was trained at.

    The threshold is the one nearest to 0.5 that is not worse than the best by more than one standard error over
    patients (the rule of Breiman et al. 1984, applied to a threshold). Flips are averaged, and components dropped, only
    where the mean Dice rises and that of no class falls (the rule of nnU-Net, Isensee et al. 2021). A case without
    foreground counts as 1 if nothing is predicted in it, as in the gate.

    Raises InputError for `auto` without a validation case, and for an area to be found on resized cases.
    """
    preprocess = dataset.manifest.preprocess
    cases = dataset.where(split="val", site=predictor.spec.sites or None).cases
    own_scale = preprocess.fit == "patch" and not (preprocess.spacing or preprocess.longest)
    for name in ("threshold", "tta", "postprocess"):
        asked = getattr(knobs, name)
        if not cases and asked in ("auto", "min_area"):
            raise InputError(f"evaluate.{name}={asked}: the validation split has no case to choose on; give a value")
    if knobs.postprocess == "min_area" and not own_scale:
        raise InputError("evaluate.postprocess=min_area: resized cases have no areas; those at their own scale have")
    drops = _drops(knobs.postprocess, own_scale=own_scale)
    flips = (False, True) if knobs.tta == "auto" else (knobs.tta,)
    thresholds = np.append(THRESHOLDS, [] if knobs.threshold == "auto" else [knobs.threshold])
    with tempfile.TemporaryDirectory(prefix="segpipe-") as folder:
        seen = _Seen(predictor, dataset, Path(folder))
        looks = {tta: _look(seen, cases, tta, thresholds, again=len(flips) * len(drops) > 1) for tta in flips}
        found = {tta: _threshold(look.dice, cases, knobs.threshold) for tta, look in looks.items()}
        ways = [Labelling(found[tta][0], tta, *dropped) for tta, dropped in product(flips, drops)]
        labelling, reasons = _best(ways, _by_class(seen, cases, ways)) if len(ways) > 1 else (ways[0], ())
        look = looks[labelling.tta]
        first = _look_first(seen, cases, look, thresholds, labelling) if cases else None
    curve = mean_of_known(look.dice[:, : len(THRESHOLDS)])
    return Choice(labelling, found[labelling.tta][1], curve, reasons, predictor.spec.precision, first)


def _drops(asked: str, *, own_scale: bool) -> list[tuple[bool, int]]:
    """Which components may be dropped; areas only of cases at their own scale."""
    areas = [(False, area) for area in AREAS] if own_scale else []
    return {
        "none": [NOTHING],
        "largest_component": [LARGEST],
        "min_area": [NOTHING, *areas],
        "auto": [NOTHING, *areas, LARGEST],
    }[asked]


class _Seen(NamedTuple):
    """What a model says of the cases of a data set: each is segmented once, until it is forgotten."""

    predictor: "Predictor"
    dataset: Dataset
    folder: Path

    def of(self, case: CaseRecord, *, tta: bool) -> tuple[Foreground, Mask, Mask]:
        """The foreground's probability, the most probable class, and the reference, each D,h,w."""
        image, reference = self.dataset.stored(case)
        kept = self._place(case, tta)
        if kept.is_file():
            with np.load(kept, allow_pickle=False) as stored:
                return stored["foreground"], stored["labels"], reference
        found = self.predictor.label(self.predictor.fit(image.astype(np.float32)), 0.0, tta)
        np.savez(kept, foreground=found.foreground, labels=found.mask)
        return found.foreground, found.mask, reference

    def forget(self, case: CaseRecord, *, tta: bool) -> None:
        """Give back the space of a case that is not asked for again."""
        self._place(case, tta).unlink()

    def _place(self, case: CaseRecord, tta: bool) -> Path:
        return self.folder / f"{case.start}_{tta}.npz"


class _Look(NamedTuple):
    """Of each case the Dice of its foreground at some thresholds, NaN where there is none and none is found, and how
    far the model agrees with its mask (`suspects.score`).
    """

    dice: Table
    scores: list[float]


def _look(seen: _Seen, cases: Sequence[CaseRecord], tta: bool, thresholds: Table, *, again: bool) -> _Look:
    """A first look at all cases; those that `_look_first` shows are kept, and all where they are asked for `again`."""
    dice = [np.full(len(thresholds), np.nan)] if not cases else []
    scores, held = list[float](), set[int]()
    for number, case in enumerate(cases):
        foreground, labels, reference = seen.of(case, tta=tta)
        dice.append(by_threshold(pixels.histograms(foreground, reference > 0, reference != IGNORE), thresholds))
        scores.append(suspects.score(foreground, labels, reference))
        before, held = {*held, number}, {*suspects.lowest(scores)}
        for gone in before - held if not again else ():
            seen.forget(cases[gone], tta=tta)
    return _Look(np.stack(dice), scores)


def _look_first(
    seen: _Seen, cases: Sequence[CaseRecord], look: _Look, thresholds: Table, labelling: Labelling
) -> suspects.Suspects:
    """The cases by their scores, with what is found at the chosen threshold, before components are dropped."""
    dice = look.dice[:, np.flatnonzero(thresholds == labelling.threshold)[-1]]
    table = suspects.table([(case.case, case.patient) for case in cases], look.scores, dice)
    found = (seen.of(cases[k], tta=labelling.tta) for k in suspects.lowest(look.scores))
    return suspects.Suspects(table, tuple(_labels(*one[:2], labelling.threshold) for one in found))


def _labels(foreground: Foreground, classes: Mask, threshold: float) -> Mask:
    return np.where(foreground >= threshold, classes, np.uint8(0))


def _threshold(dice: Table, cases: Sequence[CaseRecord], asked: float | str) -> tuple[float, str]:
    """The threshold, and where it comes from."""
    if asked != "auto":
        return float(asked), "given"
    silent = np.where(np.isnan(dice), 1.0, dice)
    best = int(silent.mean(axis=0).argmax())
    losses = pd.DataFrame(silent[:, [best]] - silent).groupby([case.patient for case in cases]).mean()
    allowed = np.flatnonzero(losses.mean() <= losses.sem().fillna(0.0) + ROUNDING)
    chosen = float(THRESHOLDS[allowed[np.abs(THRESHOLDS[allowed] - 0.5).argmin()]])
    near = f"nearest to 0.5 within one standard error of the best, {THRESHOLDS[best]:.2f}"
    return chosen, f"{near}, on {len(losses)} validation patients"


def _by_class(seen: _Seen, cases: Sequence[CaseRecord], ways: Sequence[Labelling]) -> dict[Labelling, Table]:
    """Dice of each case and class by each way of labelling, 1 where a class is neither there nor found."""
    rows: dict[Labelling, list[Table]] = {way: [] for way in ways}
    for case, tta in product(cases, {way.tta for way in ways}):
        foreground, labels, reference = seen.of(case, tta=tta)
        for way in (way for way in ways if way.tta == tta):
            whole = _labels(foreground, labels, way.threshold)
            mask = components.clean(whole, way.largest_component, way.min_area)
            dice = overlaps.overlap("dice", overlaps.count(mask, reference, len(seen.dataset.manifest.classes)))
            rows[way].append(np.where(np.isnan(dice), 1.0, dice))
    return {way: np.stack(found) for way, found in rows.items()}


def _best(ways: Sequence[Labelling], dice: Mapping[Labelling, Table]) -> tuple[Labelling, tuple[str, ...]]:
    """The first way, with flips if they help, and then without the components whose dropping helps most; and why."""
    first, reasons = ways[0], list[str]()
    flipped = [way for way in ways if way.tta != first.tta and way[2:] == first[2:]]
    best = _better(first, flipped, dice)
    if flipped:
        reasons.append(f"averaging flips{_gain(first, best, dice)}")
    dropped, before = [way for way in ways if way.tta == best.tta and way[2:] != best[2:]], best
    best = _better(before, dropped, dice)
    if dropped:
        kept = f", keeping {_components(best)}" if best != before else ""
        reasons.append(f"dropping components{kept}{_gain(before, best, dice)}")
    return best, tuple(reasons)


def _better(before: Labelling, rivals: Sequence[Labelling], dice: Mapping[Labelling, Table]) -> Labelling:
    """The rival that helps most, if any does."""
    helpful = [way for way in rivals if _helps(dice[way], dice[before])]
    return max(helpful, key=lambda way: float(dice[way].mean()), default=before)


def _gain(before: Labelling, after: Labelling, dice: Mapping[Labelling, Table]) -> str:
    if before == after:
        return " does not help on validation cases"
    return f": mean Dice on validation cases {dice[before].mean():.4f} -> {dice[after].mean():.4f}"


def _helps(dice: Table, before: Table) -> bool:
    """Whether the mean Dice rises, and that of no class falls."""
    gains = (dice - before).mean(axis=0)
    return bool(gains.mean() > ROUNDING and gains.min() >= -ROUNDING)


def _components(way: Labelling) -> str:
    return (
        "the largest of each class" if way.largest_component else f"those of {way.min_area} pixels or voxels and more"
    )
