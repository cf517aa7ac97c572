"""`python -m steps.preprocess`"""

from segpipe.config import Config
from steps import cli


@cli.step("preprocess")
def main(config: Config) -> str:
    """Read the raw data, split it by patient, and write one array per split and a manifest."""
    from segpipe import plots, tracking
    from segpipe.data import cache
    from segpipe.data.readers import open_reader

    reader = open_reader(config)
    with tracking.artifact_folder("dataset") as folder:
        manifest = cache.build(config, reader, folder, cli.progress("preprocess"))
        plots.dataset(manifest, folder, folder / "samples.png")
    for split in ("train", "val", "test"):
        tracking.log_dataset(manifest.reader, f"runs:/{tracking.active().info.run_id}/dataset", manifest.digest, split)
    tracking.tag(dataset_digest=manifest.digest, test_digest=manifest.test_digest)
    sizes = "/".join(str(len(manifest.of(split))) for split in ("train", "val", "test"))
    return f"{sizes} train/val/test cases of {len({case.patient for case in manifest.cases})} patients"


if __name__ == "__main__":
    main()
