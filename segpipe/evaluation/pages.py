"""The pages of an evaluation, made of what it keeps: the report with its pictures and tables, and the model card."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from segpipe.config.sections import Config
from segpipe.data.dataset import Dataset
from segpipe.evaluation import card, measuring
from segpipe.evaluation.kept import Kept
from segpipe.evaluation.report import page

if TYPE_CHECKING:
    from segpipe.recording.logged_models import Training
    from segpipe.tracking.lineage_graph import Lineage


def write(kept: Kept, dataset: Dataset, config: Config, trained: "Training", origin: "Lineage", folder: Path) -> None:
    """Write report.html with its pictures and tables, and the model card, into a folder.

    `config` is the evaluation's: of it count `card`, `evaluate`, `registry` and the seed.
    """
    found, summary, knobs = kept.found, kept.summary, config.evaluate
    groups = measuring.subgroups(found.cases, knobs.subgroups, knobs.bootstrap_samples, config.seed)
    sweep = {"threshold": measuring.THRESHOLDS, "val_dice": kept.val_dice, "test_dice": found.test_dice}
    evidence = page.Evidence(
        title=f"{config.registry.model_name}: {trained.config.model.arch}, {trained.config.model.encoder}",
        kind=dataset.manifest.kind,
        classes=dataset.manifest.classes,
        summary=summary,
        cases=found.cases,
        lesions=found.lesions,
        by_class=measuring.by_class(found.cases, dataset.manifest.classes, knobs.bootstrap_samples, config.seed),
        labels=found.labels,
        subgroups=groups,
        sweep=pd.DataFrame(sweep),
        band=found.band,
        whole=found.whole,
        embeddings=found.embeddings,
        shown=_shown(kept, dataset),
        suspects=_suspects(kept, dataset),
        history=trained.history,
        lineage=origin.rows(),
        tree=origin.picture(),
        facts=list(trained.facts.items()),
    )
    page.write(evidence, folder)
    ours = {"card": config.card, "evaluate": knobs, "registry": config.registry}
    text = card.card(trained.config.model_copy(update=ours), dataset.manifest, summary, groups, trained.facts)
    (folder / card.FILE).write_text(text, encoding="utf-8")


def _shown(kept: Kept, dataset: Dataset) -> dict[str, page.Shown]:
    """The cases to look at, by rank."""
    records, names = {case.case: case for case in dataset.manifest.of("test")}, measuring.ranked(kept.found.cases)
    return {
        rank: page.Shown(names[rank], *dataset.native(records[names[rank]]), predicted)
        for rank, predicted in kept.masks.items()
    }


def _suspects(kept: Kept, dataset: Dataset) -> list[page.Suspect]:
    """The validation cases whose masks are to be looked at first, as the data set holds them."""
    if kept.look_first is None:
        return []
    records, found = {case.case: case for case in dataset.manifest.of("val")}, []
    for row, predicted in zip(kept.look_first.table.to_dict("records"), kept.look_first.labels, strict=False):
        image, reference = dataset.stored(records[row["case"]])
        shown = page.Shown(row["case"], image.astype(np.float32), reference, predicted)
        found.append(page.Suspect(shown, row["score"], row["dice"]))
    return found
