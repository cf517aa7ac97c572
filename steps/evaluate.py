"""`python -m steps.evaluate`"""

from segpipe.config import Config
from steps import cli


@cli.step("evaluate", inputs=("preprocess", "train"))
def main(config: Config, preprocess: str, train: str) -> str:
    """Measure the trained model on the test set, case by case, with confidence intervals over patients."""
    from segpipe import engine, evaluation, plots, tracking
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

    dataset = tracking.local(f"runs:/{preprocess}/dataset")
    manifest = Manifest.load(dataset)
    knobs, trained = config.evaluate, tracking.tag_of(train, tracking.MODEL)
    predictor = Predictor.load(tracking.model_folder(f"models:/{trained}"), engine.runtime(config.train).device)
    model_id = tracking.with_threshold(predictor, trained, knobs.threshold)

    cases = evaluation.evaluate(predictor, manifest, dataset, knobs.threshold, cli.progress("evaluate"))
    summary = evaluation.summarise(cases, knobs.threshold, knobs.bootstrap_samples, config.seed)

    with tracking.artifact_folder("evaluation") as folder:
        plots.extremes(predictor, manifest, dataset, evaluation.ranked(cases), knobs.threshold, folder)
        evaluation.save(cases, summary, folder)
    tracking.log_evaluation(summary, model_id, manifest, f"runs:/{preprocess}/dataset")
    return evaluation.headline(summary)


if __name__ == "__main__":
    main()
