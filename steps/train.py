"""`python -m steps.train`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import os

from segpipe.config.sections import Config
from segpipe.orchestration.session import Session
from steps import command


def elsewhere(session: Session, config: Config) -> bool:
    """Train without a run of this process's own: beside process 0 of a training, or without MLflow."""
    if int(os.environ.get("RANK", "0")) > 0:
        from segpipe.orchestration import workers

        workers.follow(session, config)
    elif not config.tracking.enabled:
        from segpipe.orchestration import trainings

        trainings.train_without_mlflow(session, config)
    else:
        return False
    return True


@command.step("train", elsewhere=elsewhere)
def main(session: Session, config: Config, preprocess: str) -> str:
    """Train the configured model and log the one with the best validation Dice."""
    from segpipe.orchestration import trainings

    return trainings.train(session, config, preprocess)


if __name__ == "__main__":
    main()
