"""`python -m steps.train`"""

from segpipe.config import Config
from steps import cli


@cli.step("train", inputs=("preprocess",))
def main(config: Config, preprocess: str) -> str:
    """Train the configured model and log the one with the best validation Dice."""
    from segpipe import engine, models, tracking
    from segpipe.data.batches import Batches
    from segpipe.inference import ModelSpec, Predictor
    from segpipe.manifest import Manifest

    device, precision = runtime = engine.runtime(config.train)
    folder = tracking.local(f"runs:/{preprocess}/dataset")
    manifest = Manifest.load(folder)
    tracking.log_dataset(manifest.reader, f"runs:/{preprocess}/dataset", manifest.digest, "train")
    train = Batches(manifest, folder, "train", config.train.batch_size, device, config.train.empty_share)
    val = Batches(manifest, folder, "val", config.train.batch_size, device)
    model = models.build(config.model, len(manifest.channels), len(manifest.classes), config.seed)
    tracking.tag(device=str(device), precision=str(precision), parameters=str(models.parameter_count(model)))

    result = engine.fit(model, train, val, config, runtime, cli.reporter(config.train.epochs))

    model.load_state_dict(result.weights)
    spec = ModelSpec(
        model=config.model,
        preprocess=manifest.preprocess,
        reader=manifest.reader,
        channels=manifest.channels,
        classes=manifest.classes,
    )
    tracking.log_training(result, Predictor(spec, model))
    return f"val Dice {result.best.val_dice:.3f} in epoch {result.best.epoch + 1} of {config.train.epochs}"


if __name__ == "__main__":
    main()
