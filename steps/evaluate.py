"""`python -m steps.evaluate`"""

from typing import TYPE_CHECKING

from segpipe.config import Config
from steps import cli

if TYPE_CHECKING:
    from pathlib import Path

    from segpipe.evaluation import Choice, Measurement, Summary
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest


@cli.step("evaluate", inputs=("preprocess", "train"))
def main(config: Config, preprocess: str, train: str) -> str:
    """Measure the trained model on the test set, case by case, with confidence intervals over patients."""
    from segpipe import artifacts, distributed, evaluation, logged_models, sources, tracking
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

    dataset = artifacts.local(f"runs:/{preprocess}/dataset")
    manifest = Manifest.load(dataset)
    knobs, trained = config.evaluate, tracking.tag_of(train, tracking.MODEL)
    predictor = Predictor.load(logged_models.folder(f"models:/{trained}"), distributed.device(config.train))

    choice = evaluation.choose(predictor, manifest, dataset, knobs.threshold)
    model_id = logged_models.with_threshold(predictor, trained, choice.threshold)
    found = evaluation.evaluate(predictor, manifest, dataset, choice.threshold, knobs, cli.progress("evaluate"))
    summary = evaluation.summarise(found, choice, knobs.bootstrap_samples, config.seed)
    summary |= logged_models.weights(model_id)

    with artifacts.folder("evaluation") as folder:
        _report(config, train, predictor, manifest, dataset, found, choice, summary, folder)
        evaluation.save(found, summary, folder)
        tracking.tag(cases_sha256=sources.sha256(folder / "cases.csv"))
    logged_models.log_evaluation(summary, model_id, manifest, f"runs:/{preprocess}/dataset")
    return evaluation.headline(summary)


def _report(
    config: Config,
    train: str,
    predictor: "Predictor",
    manifest: "Manifest",
    dataset: "Path",
    found: "Measurement",
    choice: "Choice",
    summary: "Summary",
    folder: "Path",
) -> None:
    """Write report.html with its pictures and tables, and the model card."""
    import pandas as pd

    from segpipe import card, evaluation, lineage, logged_models, report, tracking

    trained = logged_models.training(train)
    groups = evaluation.subgroups(
        found.cases, config.evaluate.subgroups, config.evaluate.bootstrap_samples, config.seed
    )
    origin = lineage.of(tracking.active().info.run_id)
    cases = {case.case: case for case in manifest.of("test")}
    shown = {}
    for rank, name in evaluation.ranked(found.cases).items():
        image, reference = manifest.native(dataset, cases[name])
        predicted = predictor.segment(image, choice.threshold).mask
        shown[rank] = report.Shown(name, image, reference, predicted)
    evidence = report.Evidence(
        title=f"{config.registry.model_name}: {trained.config.model.arch}, {trained.config.model.encoder}",
        summary=summary,
        cases=found.cases,
        lesions=found.lesions,
        subgroups=groups,
        sweep=pd.DataFrame({
            "threshold": evaluation.THRESHOLDS,
            "val_dice": choice.val_dice,
            "test_dice": evaluation.mean_of_known(found.sweep),
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
    report.write(evidence, folder)
    ours = {"card": config.card, "evaluate": config.evaluate, "registry": config.registry}
    text = card.card(trained.config.model_copy(update=ours), manifest, summary, groups, trained.facts)
    (folder / "model_card.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
