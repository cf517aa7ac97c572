"""`python -m steps.preprocess`"""

import shutil
from pathlib import Path

from segpipe.config.sections import Config
from segpipe.data.manifest import FILE, SPLITS, Manifest
from segpipe.orchestration import keys
from steps import command


def without_mlflow(config: Config) -> tuple[Path, str]:
    """The dataset's folder under tracking.outputs, made if it is not there, and the step's key."""
    from segpipe.recording import offline

    key = keys.key("preprocess", config, {}).digest
    folder = offline.outputs(config.tracking.outputs) / "datasets" / key[:16]
    if not (folder / FILE).is_file():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _build(config, partial)
        partial.rename(folder)
    return folder, key


def elsewhere(config: Config) -> bool:
    """Preprocess without MLflow, where that is asked for."""
    if config.tracking.enabled:
        return False
    command.say(f"dataset in {without_mlflow(config)[0]}")
    return True


def _build(config: Config, folder: Path) -> Manifest:
    from segpipe.data import dataset_writer
    from segpipe.data.dataset import Dataset
    from segpipe.data.readers import open_reader
    from segpipe.plots import cases

    manifest = dataset_writer.build(config, open_reader(config), folder, command.progress("preprocess"))
    cases.dataset(Dataset(folder, manifest), folder / "samples.png")
    return manifest


@command.step("preprocess", elsewhere=elsewhere)
def main(config: Config) -> str:
    """Read the raw data, split it by patient, and write one array per split and a manifest."""
    from segpipe.tracking import artifacts, runs

    with artifacts.folder("dataset") as folder:
        manifest = _build(config, folder)
    for split in SPLITS:
        artifacts.log_dataset(manifest.reader, f"runs:/{runs.active().info.run_id}/dataset", manifest.digest, split)
    runs.tag(dataset_digest=manifest.digest, test_digest=manifest.test_digest)
    sizes = "/".join(str(len(manifest.of(split))) for split in SPLITS)
    return f"{sizes} {'/'.join(SPLITS)} cases of {len({case.patient for case in manifest.cases})} patients"


if __name__ == "__main__":
    main()
