"""`python -m steps.preprocess`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from functools import partial

from segpipe.config.sections import Config
from segpipe.data.manifest import SPLITS
from segpipe.orchestration import checking, preprocessing
from segpipe.orchestration.session import Session
from steps import command


def elsewhere(session: Session, config: Config) -> bool:
    """Preprocess without MLflow, where that is asked for."""
    if config.tracking.enabled:
        return False
    session.say(f"dataset in {preprocessing.build_without_mlflow(session, config)[0]}")
    return True


@command.step("preprocess", elsewhere=elsewhere)
def main(session: Session, config: Config) -> str:
    """Read the raw data, split it by patient, and write one array per split and a manifest."""
    from segpipe.tracking import artifacts, runs

    with artifacts.folder("dataset") as folder:
        manifest = preprocessing.build(session.screen, config, folder, partial(checking.show, session.screen, config))
    for split in SPLITS:
        artifacts.log_dataset(manifest.reader, f"runs:/{runs.active().info.run_id}/dataset", manifest.digest, split)
    runs.tag(dataset_digest=manifest.digest, test_digest=manifest.test_digest)
    sizes = "/".join(str(len(manifest.of(split))) for split in SPLITS)
    return f"{sizes} {'/'.join(SPLITS)} cases of {len({case.patient for case in manifest.cases})} patients"


if __name__ == "__main__":
    main()
