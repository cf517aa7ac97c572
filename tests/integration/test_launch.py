"""Steps as real processes of a small MLflow project: how they end, how often they are tried, and who ends them."""

import json
import os
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from conftest import new_session
from sqlalchemy import event
from sqlalchemy.engine import Engine

from segpipe.config import settings
from segpipe.errors import InputError, StepError
from segpipe.files import hashes
from segpipe.orchestration import launch
from segpipe.recording import logged_models
from segpipe.runtime import processes
from segpipe.runtime.signals import Interrupted
from segpipe.tracking import artifacts, experiments, run_tags, runs
from steps import command as command_line

PROJECT = """
name: small
entry_points:
  train:
    parameters:
      config: {type: string, default: ""}
      preprocess_run: {type: string, default: ""}
    command: "python step.py {config}"
"""
STEP = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(os.environ["MLFLOW_RUN_ID"])
def end(number, frame):
    run.with_suffix(".asked").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.path.exists("stubborn") else end)
run.with_suffix(".tmp").write_text(json.dumps({"environment": dict(os.environ), "pid": os.getpid()}))
run.with_suffix(".tmp").rename(run.with_suffix(".begun"))
while not run.with_suffix(".code").exists():
    time.sleep(0.02)
sys.exit(int(run.with_suffix(".code").read_text()))
"""


class Project:
    """A project whose step tells that it has begun, and ends when it is told to."""

    def __init__(self, root, client):
        self.root, self.client, self.session = root, client, new_session()
        (root / "MLproject").write_text(PROJECT)
        (root / "step.py").write_text(STEP)
        self.parent = client.create_run(experiments.ensure("segpipe"), tags={"mlflow.source.name": "here"})
        self.known = {run.info.run_id for run in self.runs(all_parents=True)}

    def runs(self, all_parents=False):
        query = "" if all_parents else f"tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'"
        return self.client.search_runs([self.parent.info.experiment_id], query, order_by=["start_time ASC"])

    def launch(self, **how):
        launcher = launch.Launcher(self.session, self.parent, launch.How(**how))
        return launch.launch("train", {"preprocess_run": "some-run"}, launcher, "a test asks")

    def begun(self, number=1):
        """The files of the steps that have begun, once there are so many, in order."""
        until = time.monotonic() + 30
        while len(found := sorted(self.root.glob("*.begun"), key=lambda path: path.stat().st_mtime_ns)) < number:
            assert time.monotonic() < until
            time.sleep(0.02)
        return found

    def end(self, code, number=1, **tags):
        """Let the step that began as number so many leave with a code, and its run with tags."""
        path = self.begun(number)[number - 1]
        for name, value in tags.items():
            self.client.set_tag(path.stem, f"segpipe.{name}", value)
        path.with_suffix(".tmp").write_text(str(code))
        path.with_suffix(".tmp").rename(path.with_suffix(".code"))

    def meanwhile(self, *acts):
        """Do something in a thread while a step is launched."""
        threading.Thread(target=lambda: [act() for act in acts], daemon=True).start()


@pytest.fixture
def project(store, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.project, "PROJECT", tmp_path)
    monkeypatch.setattr(launch, "PAUSE", 0.2)
    found = Project(tmp_path, runs.MlflowClient())
    yield found
    assert [run.info.run_id for run in found.runs() if run.info.status == "RUNNING"] == []
    assert psutil.Process().children() == []


def test_a_step_gets_uris_and_run_ids_and_leaves_them_on_its_run(project):
    project.meanwhile(lambda: project.end(0))
    run = project.launch()
    assert run.info.status == "FINISHED"
    config = f"runs:/{project.parent.info.run_id}/config/resolved.yaml"
    assert run.data.params == {"config": config, "preprocess_run": "some-run"}
    wanted = {
        "mlflow.parentRunId": project.parent.info.run_id,
        "mlflow.project.entryPoint": "train",
        "mlflow.source.name": "here",
        "segpipe.step": "train",
        "segpipe.because": "a test asks",
    }
    assert wanted.items() <= run.data.tags.items()
    assert launch.ATTEMPT not in run.data.tags
    environment = json.loads(project.begun()[0].read_text())["environment"]
    assert environment["SEGPIPE_DRIVER"] == processes.driver()


@pytest.mark.parametrize("code", [1, None])
def test_a_step_that_dies_without_a_word_is_told_so(project, code):
    def end():
        pid = json.loads(project.begun()[0].read_text())["pid"]
        os.kill(pid, signal.SIGKILL) if code is None else project.end(code)

    project.meanwhile(end)
    with pytest.raises(StepError, match=r"train failed \(run \w{32}\): its process ended without a word"):
        project.launch()
    (run,) = project.runs()
    assert (run.info.status, run.data.tags[run_tags.REASON]) == ("FAILED", launch.SILENT)


def test_a_failed_steps_own_reason_is_told_and_the_end_of_its_log(project, capfd):
    def end():
        run_id = project.begun()[0].stem
        project.client.log_text(run_id, "".join(f"line {n}\n" for n in range(20)), "logs/step.log")
        project.end(1, reason="the loss is not finite")

    project.meanwhile(end)
    with pytest.raises(StepError, match="the loss is not finite"):
        project.launch()
    assert capfd.readouterr().err.splitlines() == [f"  | line {n}" for n in range(10, 20)]


def test_a_project_that_cannot_be_started_is_told_in_mlflows_words(project):
    with pytest.raises(StepError, match=r"train failed .*cannot be executed using conda"):
        project.launch(env_manager="conda")
    assert [run.info.status for run in project.runs()] == ["FAILED"]


def test_what_can_pass_is_tried_again_and_the_attempt_counted(project, capfd):
    def ends():
        project.end(1, 1, passing="true", reason="no connection")
        project.end(0, 2)

    project.meanwhile(ends)
    run = project.launch()
    first, second = project.runs()
    assert second.info.run_id == run.info.run_id
    assert [first.info.status, second.info.status] == ["FAILED", "FINISHED"]
    assert second.data.tags[launch.ATTEMPT] == "2"
    told = f"train failed (run {first.info.run_id}): no connection; that can pass: attempt 2 in 0 s\n"
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(("tags", "retries", "attempts"), [({}, 3, 1), ({"passing": "true"}, 0, 1)])
def test_what_cannot_pass_or_is_not_to_be_tried_again_is_not(project, tags, retries, attempts):
    project.meanwhile(lambda: project.end(1, reason="no", **tags))
    with pytest.raises(StepError, match="no"):
        project.launch(retries={"train": retries})
    assert len(project.runs()) == attempts


def test_a_step_that_takes_too_long_is_asked_to_end(project):
    with pytest.raises(StepError, match=r"train took longer than driver\.timeout train=1.5 \(seconds\)"):
        project.launch(timeout={"train": 1.5}, retries={"train": 3})
    (run,) = project.runs()
    assert run.info.status == "FAILED"
    assert project.begun()[0].with_suffix(".asked").exists()


def test_a_step_that_does_not_end_is_killed(project, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    (project.root / "stubborn").touch()
    with pytest.raises(StepError, match="took longer"):
        project.launch(timeout={"train": 1.5})
    assert processes.started(json.loads(project.begun()[0].read_text())["pid"]) == ""


def asked_to_stop(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_step_under_way_and_none_starts_after_it(project, number):
    def twice():
        with project.session.guard.watching():
            with pytest.raises(Interrupted) as stop:
                project.launch()
            assert stop.value.number == number
            project.launch()

    project.meanwhile(project.begun, lambda: asked_to_stop(number))
    began = time.monotonic()
    with pytest.raises(Interrupted):
        twice()
    assert time.monotonic() - began < 10
    (run,) = project.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags[run_tags.REASON] == f"interrupted ({number.name})"
    assert project.begun()[0].with_suffix(".asked").exists()


def test_a_signal_ends_steps_in_all_threads_and_those_that_wait_do_not_start(project):
    outcomes = []

    def one():
        try:
            project.launch()
        except Interrupted as stop:
            outcomes.append(stop.number)

    def several():
        with project.session.guard.watching(), ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(one) for _ in range(3)]:
                future.result()
            project.session.guard.pause(0)

    project.meanwhile(lambda: project.begun(2), lambda: asked_to_stop(signal.SIGTERM))
    with pytest.raises(Interrupted):
        several()
    assert outcomes == [signal.SIGTERM] * 3
    assert [run.info.status for run in project.runs()] == ["KILLED", "KILLED"]


def test_without_a_step_under_way_a_signal_interrupts_at_once():
    threading.Timer(0.2, asked_to_stop, (signal.SIGTERM,)).start()
    began = time.monotonic()
    with pytest.raises(Interrupted), new_session().guard.watching():
        time.sleep(20)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("moment", ["commit", "before_cursor_execute"])
def test_a_signal_amid_a_transaction_is_heeded_when_it_has_ended(project, store, moment):
    run_id, signalled = project.parent.info.run_id, []

    def amid(*_):
        if not signalled:
            signalled.append(moment)
            asked_to_stop(signal.SIGTERM)

    def work():
        with project.session.guard.watching():
            project.client.set_tag(run_id, moment, "written")
            raise AssertionError

    event.listen(Engine, moment, amid)
    try:
        with pytest.raises(Interrupted):
            work()
    finally:
        event.remove(Engine, moment, amid)
    assert project.client.get_run(run_id).data.tags[moment] == "written"
    with closing(sqlite3.connect(store / "mlflow.db", timeout=0)) as database:
        database.execute("BEGIN IMMEDIATE")


class Ending:
    """An object amid whose end a signal comes: what is raised there is dropped."""

    def __del__(self):
        asked_to_stop(signal.SIGTERM)


def test_a_signal_amid_the_end_of_an_object_is_not_lost():
    def work():
        with new_session().guard.watching():
            Ending()
            time.sleep(3)

    with pytest.raises(Interrupted):
        work()


IMPORTING = """
import os, signal, sys, time
from segpipe.runtime import signals
signals.Signals().install()

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow.entities":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Watch())
try:
    import mlflow
    time.sleep(1)
    sys.exit("not interrupted")
except signals.Interrupted:
    import mlflow
    mlflow.MlflowClient
"""


def test_a_signal_amid_the_import_of_mlflow_leaves_it_whole_for_the_clean_up(command):
    done = command("-c", IMPORTING)
    assert done.returncode == 0, done.stderr


def test_a_step_that_was_signalled_itself_interrupts_the_driver(project):
    def killed():
        run_id = project.begun()[0].stem
        project.client.set_terminated(run_id, "KILLED")
        project.end(143, reason="interrupted (SIGTERM)", signal="SIGTERM")

    project.meanwhile(killed)
    with pytest.raises(Interrupted) as stop:
        project.launch()
    assert stop.value.number == signal.SIGTERM
    (run,) = project.runs()
    assert (run.info.status, run.data.tags[run_tags.REASON]) == ("KILLED", "interrupted (SIGTERM)")


PLUGIN = """
import os, subprocess
from mlflow.projects.submitted_run import LocalSubmittedRun
from mlflow.projects.utils import get_or_create_run, get_run_env_vars

class Backend:
    def run(self, uri, entry_point, params, version, config, tracking_uri, experiment_id):
        run = get_or_create_run(None, uri, experiment_id, uri, version, entry_point, params)
        if "refuse" in config:
            raise RuntimeError(config["refuse"])
        environment = {**os.environ, **get_run_env_vars(run.info.run_id, experiment_id)}
        return LocalSubmittedRun(run.info.run_id, subprocess.Popen(["python", "step.py"], cwd=uri, env=environment))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A backend that a package has brought along."""
    folder = tmp_path / "site"
    (folder / "small-1.0.dist-info").mkdir(parents=True)
    (folder / "small-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
    points = "[mlflow.project_backend]\nsmall = small_backend:Backend\n"
    (folder / "small-1.0.dist-info" / "entry_points.txt").write_text(points)
    (folder / "small_backend.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.parametrize("thread", [False, True])
def test_another_backend_gets_a_step_without_the_drivers_process(project, plugin, thread):
    def finish():
        project.client.set_terminated(project.begun()[0].stem)
        project.end(0)

    project.meanwhile(finish)
    if thread:
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(project.launch, backend="small").result()
    else:
        run = project.launch(backend="small")
    assert run.data.tags["mlflow.parentRunId"] == project.parent.info.run_id
    assert run.data.tags["segpipe.because"] == "a test asks"
    assert run.data.params["preprocess_run"] == "some-run"
    assert project.client.get_run(project.parent.info.run_id).info.status == "RUNNING"
    assert "SEGPIPE_DRIVER" not in json.loads(project.begun()[0].read_text())["environment"]


def test_a_job_elsewhere_is_cancelled_by_a_signal_and_by_the_clock(project, plugin):
    with pytest.raises(StepError, match="took longer"):
        project.launch(backend="small", timeout={"train": 1.5})
    project.meanwhile(lambda: project.begun(2), lambda: asked_to_stop(signal.SIGTERM))
    with pytest.raises(Interrupted):
        project.launch(backend="small")
    assert [run.info.status for run in project.runs()] == ["FAILED", "KILLED"]
    assert all(path.with_suffix(".asked").exists() for path in project.begun(2))


def test_a_job_that_cannot_be_handed_on_leaves_no_run_at_work(project, plugin):
    config = project.root / "backend.json"
    config.write_text('{"refuse": "no such cluster"}')
    with pytest.raises(StepError, match=r"train failed \(run \w{32}\): no such cluster"):
        project.launch(backend="small", backend_config=str(config))
    (run,) = project.runs()
    assert (run.info.status, run.data.tags["segpipe.because"]) == ("FAILED", "a test asks")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"backend": "kubernets"}, r"--backend kubernets: unknown \(nearest: kubernetes\); installed are local"),
        ({"backend": "kubernetes"}, r"--backend kubernetes needs (more packages: pip install .*kube|--backend-config)"),
        ({"backend": "databricks"}, "--backend databricks needs --backend-config FILE"),
        ({"backend_config": "nowhere.json"}, r"--backend-config nowhere\.json: No such file"),
        ({"backend_config": "broken"}, "--backend-config .*broken: not valid JSON"),
        ({"backend_config": "list"}, "--backend-config .*list: not a JSON object"),
        ({"in_process": command_line.perform, "env_manager": "uv"}, "--in-process uses this environment"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(how, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken").write_text("{")
    Path("list").write_text("[]")
    with pytest.raises(InputError, match=told):
        launch.How(**how).checked()


def test_an_installed_plugin_is_a_known_backend(plugin):
    assert launch.How(backend="small").checked().backend == "small"


def chain(config, *names, made=None, **how):
    """Launch steps one on the other, or on those made before, below a new run; theirs, by name."""
    made = dict(made or {})
    session = new_session()
    if how.pop("in_process", False):
        how["in_process"] = command_line.perform
    with runs.run(session.store, "pipeline", config), session.guard.watching():
        launcher = launch.Launcher(session, runs.active(), launch.How(**how))
        for name in names:
            inputs = {f"{known}_run": run.info.run_id for known, run in made.items()}
            made[name] = launch.launch(name, inputs, launcher, "a test asks")
    return made


def knobs(folder, **more):
    tiny = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "train.epochs": "2", "train.batch_size": "4"}
    tiny |= {"train.precision": "fp32"}  # what auto measures depends on the processor
    data = {"data.format": "folder", "data.root": str(folder), "preprocess.size": "32"}
    return settings.load(None, data | tiny | more)


def test_in_this_process_a_step_leaves_what_it_leaves_in_its_own(store, folder, tmp_path):
    config = knobs(folder, **{"tracking.outputs": str(tmp_path)})
    here = chain(config, "preprocess", in_process=True)["preprocess"]
    own = chain(config, "preprocess")["preprocess"]
    assert here.info.status == own.info.status == "FINISHED"
    differing = {"config"}
    assert {k: v for k, v in here.data.params.items() if k not in differing} == {
        k: v for k, v in own.data.params.items() if k not in differing
    }
    assert set(own.data.tags) - set(here.data.tags) <= {"mlflow.project.backend"}
    assert here.data.tags["segpipe.dataset_digest"] == own.data.tags["segpipe.dataset_digest"]
    assert here.data.tags["segpipe.pid"] == str(os.getpid()) != own.data.tags["segpipe.pid"]
    parent = runs.MlflowClient().get_run(here.data.tags["mlflow.parentRunId"])
    assert (parent.info.status, parent.data.tags["segpipe.step"]) == ("FINISHED", "pipeline")


def test_in_this_process_a_failure_is_the_same_line(store, tmp_path):
    with pytest.raises(StepError, match=r"preprocess failed \(run \w{32}\): .*nowhere"):
        chain(knobs(tmp_path / "nowhere", **{"tracking.outputs": str(tmp_path)}), "preprocess", in_process=True)


@pytest.mark.parametrize("timeout", [{}, {"preprocess": 0.2}])
def test_in_this_process_a_step_can_be_interrupted_and_timed(store, tmp_path, timeout):
    from conftest import write_folder

    config = knobs(write_folder(tmp_path / "raw", cases=400), **{"tracking.outputs": str(tmp_path)})
    client = runs.MlflowClient()

    def newest():
        return client.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]], order_by=["start_time DESC"], max_results=2)

    began = time.time() * 1000

    def stop_once_the_step_runs():
        while not any(r.info.start_time >= began and r.data.tags.get(run_tags.STEP) == "preprocess" for r in newest()):
            time.sleep(0.05)
        asked_to_stop(signal.SIGTERM)

    if not timeout:
        threading.Thread(target=stop_once_the_step_runs, daemon=True).start()
    with pytest.raises(StepError if timeout else Interrupted) as stop:
        chain(config, "preprocess", in_process=True, timeout=timeout)
    run, parent = newest()
    ended = "FAILED" if timeout else "KILLED"
    assert (run.info.status, parent.info.status) == (ended, ended)
    assert ("took longer" if timeout else "interrupted (SIGTERM)") in str(stop.value)


@pytest.mark.filterwarnings("ignore")  # of the packages that a training in this process uses
def test_in_this_process_a_training_that_failed_goes_on_with_the_next_attempt(store, folder, tmp_path, monkeypatch):
    refused, log = [], artifacts.log_dataset

    def away_at_first(*what):
        if not refused and runs.active().data.tags[run_tags.STEP] == "train":
            refused.append(what)
            raise ConnectionRefusedError("nobody listens")
        log(*what)

    monkeypatch.setattr(launch, "PAUSE", 0)
    monkeypatch.setattr(artifacts, "log_dataset", away_at_first)
    made = chain(knobs(folder, **{"tracking.outputs": str(tmp_path)}), "preprocess", "train", in_process=True)
    assert refused
    assert (made["train"].info.status, made["train"].data.tags[run_tags.RESUMED]) == ("FINISHED", "1")


def test_in_this_process_there_is_one_step_at_a_time(project):
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=r"set compare\.parallel 1"):
        pool.submit(project.launch, in_process=command_line.perform).result()


TRAININGS = """
import sys
sys.path[:0] = ["tests", "tests/integration"]
from pathlib import Path
import test_launch
from segpipe.tracking import connection
connection.connect()
print(*test_launch.trained(Path(sys.argv[1]), Path(sys.argv[2]), in_process=bool(sys.argv[3])))
"""


def trained(folder, outputs, in_process):
    """The weights' digests of four trainings by one driver: two alike, one of another seed, one in bf16."""
    digests, more = [], {"tracking.outputs": str(outputs), "train.resume": "never"}
    made = chain(knobs(folder, **more), "preprocess", in_process=True)
    for variant in ({}, {"seed": "1"}, {"train.precision": "bf16"}, {}):
        run = chain(knobs(folder, **variant, **more), "train", made=made, in_process=in_process)["train"]
        weights = logged_models.folder(f"models:/{run.data.tags[run_tags.MODEL]}") / "weights.safetensors"
        digests.append(hashes.sha256(weights))
    return digests


@pytest.mark.slow
def test_trainings_in_the_drivers_process_have_the_same_weights_to_the_bit(command, folder, tmp_path):
    found = []
    for in_process in ("yes", ""):
        done = command("-c", TRAININGS, str(folder), str(tmp_path / f"outputs {in_process}"), in_process, timeout=600)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0] == found[1]
    assert len(set(found[0])) == 3
    assert found[0][0] == found[0][3]
