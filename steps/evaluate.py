"""`python -m steps.evaluate`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import json

from segpipe.config.sections import Config
from segpipe.orchestration.session import Session
from steps import command


@command.step("evaluate")
def main(session: Session, config: Config, preprocess: str, train: str) -> str:
    """Measure the trained model on the test set, case by case, with confidence intervals over patients."""
    from segpipe.data.dataset import Dataset
    from segpipe.evaluation import choosing, measuring
    from segpipe.evaluation.kept import CASES, Kept
    from segpipe.files import hashes
    from segpipe.inference.predictor import Predictor
    from segpipe.orchestration import pages
    from segpipe.recording import logged_models
    from segpipe.runtime import devices
    from segpipe.tracking import artifacts, run_tags, runs

    dataset = Dataset.open(artifacts.local(f"runs:/{preprocess}/dataset"))
    knobs, trained = config.evaluate, runs.tag_of(train, run_tags.MODEL)
    predictor = Predictor.load(logged_models.folder(f"models:/{trained}"), devices.device(config.train))

    predictor = choosing.in_precision(predictor, dataset, knobs.precision)
    choice = choosing.choose(predictor, dataset, knobs)
    model_id = logged_models.as_measured(predictor, trained, choice.labelling)
    progress = session.screen.progress("evaluate")
    found = measuring.evaluate(predictor, dataset, choice.labelling, knobs, progress)
    weights = logged_models.weights(model_id)
    summary = measuring.summarise(found, choice, weights, knobs.bootstrap_samples, config.seed)
    masks = measuring.examples(predictor, dataset, found.cases, choice.labelling)

    with artifacts.folder("evaluation") as folder:
        Kept(found, summary, choice.val_dice, masks, choice.look_first).write(folder)
        pages.of_evaluation(runs.active().info.run_id, config, folder, kept=folder)
        runs.tag(
            precision=choice.precision,
            pages=json.dumps(session.keys.pages(config)),
            cases_sha256=hashes.sha256(folder / CASES),
        )
    logged_models.log_evaluation(summary, model_id, dataset.manifest, f"runs:/{preprocess}/dataset")
    return summary.headline()


if __name__ == "__main__":
    main()
