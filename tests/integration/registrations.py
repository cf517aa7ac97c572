"""Evaluated models that register takes, without training them; and a process that runs many registrations at once.

`python tests/integration/registrations.py` imports everything once, then reads a list of jobs per line of its input,
runs each job in a process of its own, all at once, and answers with their exit codes. A job is a dict: `arguments` of
`python -m steps.register`, `log` for what it writes, and `dies`, the number of the writing call to the registry before
which it is killed (0: none).
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

WRITES = (
    *("create_registered_model", "set_registered_model_tag", "delete_registered_model_tag", "create_model_version"),
    *("update_model_version", "set_model_version_tag", "delete_model_version_tag"),
    *("set_registered_model_alias", "delete_registered_model_alias"),
)
PATIENTS = 12
PAGE = "<!-- decision: begin --><!-- decision: end --><p>évidence</p><!-- lineage: begin --><!-- lineage: end -->"


def cases(quality, seed=0):
    """The table of an evaluation in which every metric of every case is about `quality`."""
    import numpy as np
    import pandas as pd

    from segpipe.metrics.catalogue import METRICS

    values = quality + 0.02 * np.random.default_rng([seed, round(1000 * quality)]).random(PATIENTS)
    names = [f"case{i}" for i in range(PATIENTS)]
    table = {"case": names, "patient": names, "site": ["a", "b"] * (PATIENTS // 2), "outcome": "found"}
    table |= {"size": ["small", "medium", "large"] * (PATIENTS // 3)} | dict.fromkeys(METRICS, values)
    counts = {"lesions": 4, "lesions_found": 3, "lesions_predicted": 3, "lesions_false": 0}
    counts |= {"elongation": 2.0, "dice_of_nothing": 0.0, "dice_of_everything": 0.1, "dice_of_mean_mask": 0.2}
    return pd.DataFrame({**table, "reference_voxels": 100, "predicted_voxels": 100, **counts})


class Prepared:
    """A dataset, a trained model, and as many evaluations of it as are asked for, in the active store."""

    def __init__(self, folder, experiment_id):
        from mlflow import MlflowClient

        self.client, self.folder, self.experiment = MlflowClient(), folder, experiment_id
        digests = {"segpipe.dataset_digest": "d" * 16, "segpipe.test_digest": "t" * 16}
        self.preprocess = self._run("preprocess", **digests)
        self.train = self._run("train", **{"segpipe.input.preprocess": self.preprocess})
        self.model = self._model()

    def _run(self, step, **tags):
        run = self.client.create_run(self.experiment, tags={"segpipe.step": step, "segpipe.key": step, **tags})
        self.client.set_terminated(run.info.run_id, "FINISHED")
        return run.info.run_id

    def dataset(self, folder, test_digest):
        """The run ID of a preprocess that left this folder."""
        run_id = self._run("preprocess", **{"segpipe.test_digest": test_digest})
        self.client.log_artifacts(run_id, str(folder), "dataset")
        return run_id

    def _model(self):
        """The folder of a tiny network as MLflow logs it."""
        import mlflow
        from conftest import TINY, network

        from segpipe.config import settings
        from segpipe.inference.predictor import Predictor
        from segpipe.inference.spec import ModelSpec
        from segpipe.recording import logged_models
        from segpipe.serving.served_model import ARTIFACT

        knobs = dict(knob.removeprefix("--").split("=") for knob in TINY)
        config = settings.load(None, {**knobs, "data.format": "folder"})
        shape = {"kind": "picture", "channels": ("grey",), "classes": ("foreground",)}
        spec = ModelSpec(model=config.model, preprocess=config.preprocess, **shape)
        Predictor(spec, network(config)).save(self.folder / ARTIFACT)
        with mlflow.start_run(run_id=self.train), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mlflow compares the columns of an example with a range
            uri = f"models:/{logged_models.log(self.folder / ARTIFACT)}"
        self.client.set_terminated(self.train, "FINISHED")
        return mlflow.artifacts.download_artifacts(uri, dst_path=str(self.folder / "model"))

    def evaluation(self, quality, **knobs):
        """The run ID of an evaluation of a copy of the model that found it that good, made with these knobs."""
        from example_evidence import summarised, table

        from segpipe.config import settings

        model = self.client.create_logged_model(self.experiment, name="model", source_run_id=self.train)
        self.client.log_model_artifacts(model.model_id, self.model)
        self.client.finalize_logged_model(model.model_id, "READY")
        inputs = {"segpipe.input.preprocess": self.preprocess, "segpipe.input.train": self.train}
        tags = {**inputs, "segpipe.model_id": model.model_id, "segpipe.weights_sha256": "0" * 64}
        run_id = self._run("evaluate", **tags)
        config = settings.load(None, knobs)
        self.client.log_text(run_id, settings.dump(config), "config/resolved.yaml")
        for knob, value in settings.flat(config).items():
            if knob in ("evaluate.tolerance", "evaluate.band", "registry.model_name"):
                self.client.log_param(run_id, f"cfg.{knob}", value)
        for name, value in {"": quality, "_ci_low": quality - 0.01, "_ci_high": quality + 0.03}.items():
            self.client.log_metric(run_id, f"test_dice{name}", value)
        left = self.folder / run_id / "evaluation"
        left.mkdir(parents=True)
        cases(quality).to_csv(left / "cases.csv", index=False)
        summarised(table()).model_copy(update={"latency_ms": 12.0, "size_mb": 0.1}).write(left)
        (left / "model_card.md").write_text(f"# A model of {quality}")
        (left / "report.html").write_text(PAGE, encoding="utf-8")
        self.client.log_artifacts(run_id, str(left), "evaluation")
        return run_id


class Registrar:
    """The process that runs jobs, and what they wrote."""

    def __init__(self, folder, environment=None):
        self.folder, self.jobs = folder, 0
        project = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=project,
            env={**os.environ, **(environment or {}), "PYTHONPATH": str(project)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def all_at_once(self, *commands, dies=0):
        """The exit code and the output of each command line of register."""
        logs = [self.folder / f"job{self.jobs + n}.log" for n in range(len(commands))]
        self.jobs += len(commands)
        jobs = [{"arguments": c, "log": str(log), "dies": dies} for c, log in zip(commands, logs, strict=True)]
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline())
        return [(code, log.read_text(encoding="utf-8")) for code, log in zip(codes, logs, strict=True)]

    def __call__(self, *arguments, dies=0):
        """The exit code and the output of one command line."""
        (result,) = self.all_at_once(arguments, dies=dies)
        return result

    def close(self):
        with self.process:
            self.process.stdin.close()


def mortal(dies):
    """Let this process kill itself before the writing call of that number."""
    from mlflow import MlflowClient

    left = [dies]

    def counted(method):
        def call(*arguments, **keywords):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **keywords)

        return call

    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


def start(job):
    """The process ID of a job."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    from steps import register

    with Path(job["log"]).open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if job["dies"]:
        mortal(job["dies"])
    register.main.main(job["arguments"])
    sys.exit(0)


def serve():
    """Run the jobs of each line of the input."""
    import git  # noqa: F401  # these once, not in every job
    import rich.table  # noqa: F401
    import scipy.stats  # noqa: F401
    from mlflow.store.model_registry import sqlalchemy_store as _registry  # noqa: F401
    from mlflow.store.tracking import sqlalchemy_store as _tracking  # noqa: F401

    from segpipe.evaluation import gate  # noqa: F401

    for text in sys.stdin:
        children = [start(job) for job in json.loads(text)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
