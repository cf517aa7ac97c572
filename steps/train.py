"""`python -m steps.train`"""

import os
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from steps import command

if TYPE_CHECKING:
    from segpipe.data.dataset import Dataset
    from segpipe.recording.artifact_tree import Recorder
    from segpipe.training.trainer import Job


def elsewhere(config: Config) -> bool:
    """Train without a run of this process's own: beside process 0 of a training, or without MLflow."""
    if int(os.environ.get("RANK", "0")) > 0:
        from segpipe.orchestration import workers

        workers.follow(config)
    elif not config.tracking.enabled:
        _offline(config)
    else:
        return False
    return True


@command.step("train", inputs=("preprocess",), elsewhere=elsewhere)
def main(config: Config, preprocess: str) -> str:
    """Train the configured model and log the one with the best validation Dice."""
    from segpipe.data.dataset import Dataset
    from segpipe.orchestration import resume
    from segpipe.recording import offline
    from segpipe.recording.spool import Spool
    from segpipe.tracking import artifacts, run_tags, runs
    from segpipe.training.trainer import Job

    uri = f"runs:/{preprocess}/dataset"
    dataset = Dataset.open(artifacts.local(uri))
    key = runs.tag_of(runs.active().info.run_id, run_tags.KEY)
    outputs = offline.outputs(config.tracking.outputs)
    checkpoints = resume.claim_run(config, key, outputs / "checkpoints")
    run_id = runs.active().info.run_id
    artifacts.log_dataset(dataset.manifest.reader, uri, dataset.manifest.digest, "train")
    spool = Spool(run_id, offline.unsent(config.tracking.outputs, run_id), command.say)
    runs.speak_through(spool)
    job = Job(
        config=config,
        dataset=dataset.folder,
        key=key,
        checkpoints=checkpoints,
        record=spool.folder,
        run_id=run_id,
        dataset_uri=uri,
    )
    return _train(job, dataset, spool)


def _offline(config: Config) -> None:
    from segpipe.data.dataset import Dataset
    from segpipe.orchestration import keys, resume
    from segpipe.recording import offline
    from segpipe.training.trainer import Job
    from steps.preprocess import without_mlflow

    outputs = offline.outputs(config.tracking.outputs)
    folder, upstream = without_mlflow(config)
    key = keys.key("train", config, {"preprocess": upstream}).digest
    root = resume.claim_folder(config, key, outputs)
    recorder = offline.FolderRecorder(root)
    with recorder.status(key):
        job = Job(config=config, dataset=folder, key=key, checkpoints=root / offline.RESUME, record=root)
        command.say(_train(job, Dataset.open(folder), recorder))
    command.say(f"recorded in {root}")


def _train(job: "Job", dataset: "Dataset", recorder: "Recorder") -> str:
    """Train in this process, in this one and its followers, or in as many as are asked for."""
    from segpipe.orchestration import resume, workers
    from segpipe.runtime import process_group, signals
    from segpipe.training import trainer

    if job.config.train.processes > 1 and not process_group.launched():
        figure = workers.launch(job)
    else:
        accelerator = process_group.start(job.config.train)
        process_group.share(job)
        if process_group.world() == 1:
            show = workers.reporter(job.config.train.epochs)
            with signals.stoppable() as stop:
                figure = trainer.run(job, dataset, accelerator, recorder, command.say, show, stop)
        else:
            figure = workers.take_part(job, accelerator, recorder)
    resume.release(job.checkpoints)
    return figure


if __name__ == "__main__":
    main()
