"""A training as a step: with a run of MLflow or without, in one process or in several."""

from segpipe.config.sections import Config
from segpipe.data.dataset import Dataset
from segpipe.federation import federated
from segpipe.orchestration import preprocessing, resume, workers
from segpipe.orchestration.session import Session
from segpipe.recording import offline
from segpipe.recording.artifact_tree import Recorder
from segpipe.runtime import process_group
from segpipe.training import trainer
from segpipe.training.trainer import Job


def train(session: Session, config: Config, preprocess: str) -> str:
    """Train on the dataset of a run, under the active run or the interrupted one that it continues; the key figure."""
    from segpipe.recording.spool import Spool
    from segpipe.tracking import artifacts, run_tags, runs

    uri = f"runs:/{preprocess}/dataset"
    dataset = Dataset.open(artifacts.local(uri))
    key = runs.tag_of(runs.active().info.run_id, run_tags.KEY)
    outputs = offline.outputs(config.tracking.outputs)
    checkpoints = resume.claim_run(session, config, key, outputs / "checkpoints")
    run_id = runs.active().info.run_id
    artifacts.log_dataset(dataset.manifest.reader, uri, dataset.manifest.digest, "train")
    spool = Spool(run_id, offline.unsent(config.tracking.outputs, run_id), session.say)
    session.store.speak_through(spool)
    job = Job(
        config=config,
        dataset=dataset.folder,
        key=key,
        checkpoints=checkpoints,
        record=spool.folder,
        run_id=run_id,
        dataset_uri=uri,
    )
    return _train(session, job, dataset, spool)


def train_without_mlflow(session: Session, config: Config) -> None:
    """Preprocess unless that has been done, train, and record it in a folder under tracking.outputs."""
    outputs = offline.outputs(config.tracking.outputs)
    folder, upstream = preprocessing.build_without_mlflow(session, config)
    key = session.keys.key("train", config, {"preprocess": upstream}).digest
    root = resume.claim_folder(session, config, key, outputs)
    recorder = offline.FolderRecorder(root)
    with recorder.status(key):
        job = Job(config=config, dataset=folder, key=key, checkpoints=root / offline.RESUME, record=root)
        session.say(_train(session, job, Dataset.open(folder), recorder))
    session.say(f"recorded in {root}")


def _train(session: Session, job: Job, dataset: Dataset, recorder: Recorder) -> str:
    """Train in this process, in this one and its followers, or in as many as are asked for."""
    if job.config.train.processes > 1 and not process_group.launched():
        figure = workers.launch(job)
    else:
        accelerator = process_group.start(job.config.train)
        process_group.share(job)
        if process_group.world() == 1:
            averages = job.config.federate.averages
            show = workers.Reporter(session.screen, "round" if averages else "epoch")
            train = federated.run if averages else trainer.run
            with session.signals.stoppable() as stop:
                figure = train(job, dataset, accelerator, recorder, session.say, show, stop)
        else:
            figure = workers.take_part(session.screen, job, accelerator, recorder)
    resume.release(job.checkpoints)
    return figure
