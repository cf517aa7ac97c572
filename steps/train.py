"""`python -m steps.train`"""

import os
from typing import TYPE_CHECKING

from segpipe.config import Config
from steps import cli

if TYPE_CHECKING:
    from segpipe.journal import Recorder
    from segpipe.training import Job


def elsewhere(config: Config) -> bool:
    """Train without a run of this process's own: beside process 0 of a training, or without MLflow."""
    if int(os.environ.get("RANK", "0")) > 0:
        from steps import workers

        workers.follow(config)
    elif not config.tracking.enabled:
        _offline(config)
    else:
        return False
    return True


@cli.step("train", inputs=("preprocess",), elsewhere=elsewhere)
def main(config: Config, preprocess: str) -> str:
    """Train the configured model and log the one with the best validation Dice."""
    from segpipe import artifacts, offline, tracking
    from segpipe.manifest import Manifest
    from segpipe.spool import Spool
    from segpipe.training import Job
    from steps import resume

    uri = f"runs:/{preprocess}/dataset"
    dataset = artifacts.local(uri)
    manifest = Manifest.load(dataset)
    key = tracking.tag_of(tracking.active().info.run_id, tracking.KEY)
    outputs = offline.outputs(config.tracking.outputs)
    checkpoints = resume.claim_run(config, key, outputs / "checkpoints")
    run_id = tracking.active().info.run_id
    artifacts.log_dataset(manifest.reader, uri, manifest.digest, "train")
    spool = Spool(run_id, offline.unsent(config.tracking.outputs, run_id), cli.say)
    tracking.speak_through(spool)
    job = Job(
        config=config,
        dataset=dataset,
        key=key,
        checkpoints=checkpoints,
        record=spool.folder,
        run_id=run_id,
        dataset_uri=uri,
    )
    return _train(job, spool)


def _offline(config: Config) -> None:
    from segpipe import offline
    from segpipe.training import Job
    from steps import keys, resume
    from steps.preprocess import without_mlflow

    outputs = offline.outputs(config.tracking.outputs)
    dataset, upstream = without_mlflow(config)
    key = keys.key("train", config, {"preprocess": upstream}).digest
    root = resume.claim_folder(config, key, outputs)
    recorder = offline.FolderRecorder(root)
    with recorder.status(key):
        job = Job(config=config, dataset=dataset, key=key, checkpoints=root / offline.RESUME, record=root)
        cli.say(_train(job, recorder))
    cli.say(f"recorded in {root}")


def _train(job: "Job", recorder: "Recorder") -> str:
    """Train in this process, in this one and its followers, or in as many as are asked for."""
    from segpipe import distributed, training
    from steps import resume, signals, workers

    if job.config.train.processes > 1 and not distributed.launched():
        figure = workers.launch(job)
    else:
        accelerator = distributed.start(job.config.train)
        distributed.share(job)
        if distributed.world() == 1:
            show = workers.reporter(job.config.train.epochs)
            with signals.stoppable() as stop:
                figure = training.run(job, accelerator, recorder, cli.say, show, stop)
        else:
            figure = workers.take_part(job, accelerator, recorder)
    resume.release(job.checkpoints)
    return figure


if __name__ == "__main__":
    main()
