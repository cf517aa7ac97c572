"""`python -m steps.evaluate`"""

from segpipe.config import Config
from steps import cli


@cli.step("evaluate", inputs=("preprocess", "train"))
def main(config: Config, preprocess: str, train: str) -> str:
    """Measure the trained model on the test set, case by case, with confidence intervals over patients."""
    from segpipe import artifacts, distributed, evaluation, logged_models, plots, tracking
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

    dataset = artifacts.local(f"runs:/{preprocess}/dataset")
    manifest = Manifest.load(dataset)
    knobs, trained = config.evaluate, tracking.tag_of(train, tracking.MODEL)
    predictor = Predictor.load(logged_models.folder(f"models:/{trained}"), distributed.device(config.train))
    model_id = logged_models.with_threshold(predictor, trained, knobs.threshold)

    cases = evaluation.evaluate(predictor, manifest, dataset, knobs.threshold, cli.progress("evaluate"))
    summary = evaluation.summarise(cases, knobs.threshold, knobs.bootstrap_samples, config.seed)

    with artifacts.folder("evaluation") as folder:
        plots.extremes(predictor, manifest, dataset, evaluation.ranked(cases), knobs.threshold, folder)
        evaluation.save(cases, summary, folder)
    logged_models.log_evaluation(summary, model_id, manifest, f"runs:/{preprocess}/dataset")
    return evaluation.headline(summary)


if __name__ == "__main__":
    main()
