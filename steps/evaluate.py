"""`python -m steps.evaluate`"""

from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from steps import command

if TYPE_CHECKING:
    from pathlib import Path

    from segpipe.data.dataset import Dataset
    from segpipe.evaluation.measuring import Choice, Measurement, Summary
    from segpipe.inference.predictor import Predictor


@command.step("evaluate", inputs=("preprocess", "train"))
def main(config: Config, preprocess: str, train: str) -> str:
    """Measure the trained model on the test set, case by case, with confidence intervals over patients."""
    from segpipe.data.dataset import Dataset
    from segpipe.evaluation import measuring
    from segpipe.files import hashes
    from segpipe.inference.predictor import Predictor
    from segpipe.recording import logged_models
    from segpipe.runtime import devices
    from segpipe.tracking import artifacts, run_tags, runs

    dataset = Dataset.open(artifacts.local(f"runs:/{preprocess}/dataset"))
    knobs, trained = config.evaluate, runs.tag_of(train, run_tags.MODEL)
    predictor = Predictor.load(logged_models.folder(f"models:/{trained}"), devices.device(config.train))

    choice = measuring.choose(predictor, dataset, knobs.threshold)
    model_id = logged_models.with_threshold(predictor, trained, choice.threshold)
    found = measuring.evaluate(predictor, dataset, choice.threshold, knobs, command.progress("evaluate"))
    summary = measuring.summarise(found, choice, knobs.bootstrap_samples, config.seed)
    summary |= logged_models.weights(model_id)

    with artifacts.folder("evaluation") as folder:
        _report(config, train, predictor, dataset, found, choice, summary, folder)
        measuring.save(found, summary, folder)
        runs.tag(cases_sha256=hashes.sha256(folder / "cases.csv"))
    logged_models.log_evaluation(summary, model_id, dataset.manifest, f"runs:/{preprocess}/dataset")
    return measuring.headline(summary)


def _report(
    config: Config,
    train: str,
    predictor: "Predictor",
    dataset: "Dataset",
    found: "Measurement",
    choice: "Choice",
    summary: "Summary",
    folder: "Path",
) -> None:
    """Write report.html with its pictures and tables, and the model card."""
    import pandas as pd

    from segpipe.evaluation import card, measuring
    from segpipe.evaluation.report import page
    from segpipe.recording import logged_models
    from segpipe.tracking import lineage, runs

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


if __name__ == "__main__":
    main()
