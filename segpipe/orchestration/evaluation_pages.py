"""What an evaluation shows: the report, its pictures and tables, and the model card."""

from pathlib import Path

import pandas as pd

from segpipe.config.sections import Config
from segpipe.data.dataset import Dataset
from segpipe.evaluation import card, measuring
from segpipe.evaluation.measuring import Choice, Measurement, Summary
from segpipe.evaluation.report import page
from segpipe.inference.predictor import Predictor
from segpipe.recording import logged_models
from segpipe.tracking import lineage, runs


def write(
    config: Config,
    train: str,
    predictor: Predictor,
    dataset: Dataset,
    found: Measurement,
    choice: Choice,
    summary: Summary,
    folder: Path,
) -> None:
    """Write report.html with its pictures and tables, and the model card, into a folder."""
    trained = logged_models.training(train)
    groups = measuring.subgroups(found.cases, config.evaluate.subgroups, config.evaluate.bootstrap_samples, config.seed)
    origin = lineage.of(runs.active().info.run_id)
    cases = {case.case: case for case in dataset.where(split="test").cases}
    shown = {}
    for rank, name in measuring.ranked(found.cases).items():
        image, reference = dataset.native(cases[name])
        predicted = predictor.segment(image, choice.threshold).mask
        shown[rank] = page.Shown(name, image, reference, predicted)
    evidence = page.Evidence(
        title=f"{config.registry.model_name}: {trained.config.model.arch}, {trained.config.model.encoder}",
        kind=dataset.manifest.kind,
        summary=summary,
        cases=found.cases,
        lesions=found.lesions,
        subgroups=groups,
        sweep=pd.DataFrame({
            "threshold": measuring.THRESHOLDS,
            "val_dice": choice.val_dice,
            "test_dice": measuring.mean_of_known(found.sweep),
        }),
        band=found.band,
        whole=found.whole,
        embeddings=found.embeddings,
        shown=shown,
        history=trained.history,
        lineage=origin.rows(),
        tree=origin.picture(),
        facts=list(trained.facts.items()),
    )  # fmt: skip
    page.write(evidence, folder)
    ours = {"card": config.card, "evaluate": config.evaluate, "registry": config.registry}
    text = card.card(trained.config.model_copy(update=ours), dataset.manifest, summary, groups, trained.facts)
    (folder / "model_card.md").write_text(text, encoding="utf-8")
