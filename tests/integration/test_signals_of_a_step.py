"""Steps that are asked to stop, killed, or left alone by their driver: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time

import click
import pytest
from conftest import TINY, wait_for, write_folder

from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.runtime import processes
from segpipe.tracking import connection
from steps import command

WORKERS = "steps.worker"
# A step that begins and then waits: what signals do to it is what they do to any step.
WAITING = """
import sys, time
import click
from steps import command as cli

@click.command("train", cls=cli.Command)
@click.argument("outputs")
@click.pass_obj
def main(session, outputs):
    config = cli.resolve(session, "", {"tracking.outputs": outputs})
    with cli.recorded(session, "train", config):
        session.say("begun")
        time.sleep(100)

main.main()
"""
# One that is still loading.
LOADING = """
import time
import click
from steps import command as cli

@click.command("train", cls=cli.Command)
@click.pass_obj
def main(session):
    session.say("begun")
    time.sleep(100)

main.main()
"""


def started(*program, **more):
    return subprocess.Popen(
        [sys.executable, *program],
        cwd=PROJECT,
        env={**os.environ, **more},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def begun(process):
    """Wait until a step of WAITING or LOADING waits."""
    for line in process.stderr:
        if line == "begun\n":
            return process
    raise AssertionError(process.wait())


def ended(process, within=10):
    """Exit code and the rest of stderr of a process that ends in time."""
    began = time.monotonic()
    _, shown = process.communicate(timeout=60)
    assert time.monotonic() - began < within, shown
    assert "Traceback" not in shown
    return process.returncode, shown


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient()


def run_of(client, process):
    """The run that a process worked for."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`segpipe.pid` = '{process.pid}'")
    return run


def log_of(run):
    from segpipe.tracking import artifacts

    return artifacts.local(f"runs:/{run.info.run_id}/logs/step.log").read_text()


def test_a_signal_is_the_exit_code_the_status_and_the_reason(client, tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number, process in [(number, started("-c", WAITING, str(tmp_path))) for number in numbers]:
        begun(process).send_signal(number)
        code, shown = ended(process)
        assert code == 128 + number
        assert shown.splitlines()[-1] == f"segpipe train: interrupted ({number.name})"
        run = run_of(client, process)
        assert run.info.status == "KILLED"
        assert run.data.tags["segpipe.reason"] == f"interrupted ({number.name})"
        assert log_of(run) == f"begun\nsegpipe train: interrupted ({number.name})\n"
    assert not list(tmp_path.glob("logs/*"))


def test_a_step_that_could_not_get_its_config_says_so_on_its_run_and_that_it_can_pass(client, step, monkeypatch):
    from segpipe.tracking import artifacts, run_tags

    def away(uri):
        try:
            raise ConnectionRefusedError("nobody listens")
        except ConnectionRefusedError:
            raise InputError(f"{uri}: the server is away") from None

    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    monkeypatch.setattr(artifacts, "local", away)
    assert step("preprocess", "--config=runs:/x/config/resolved.yaml") == (
        2,
        "segpipe preprocess: runs:/x/config/resolved.yaml: the server is away\n",
    )
    connection.connect()
    run = client.get_run(given)
    assert (run.info.status, run.data.tags[run_tags.PASSING]) == ("FAILED", "true")
    assert run.data.tags[run_tags.REASON] == "runs:/x/config/resolved.yaml: the server is away"


@pytest.mark.parametrize("command", [["-m", "steps.train"], ["pipeline.py"]])
def test_an_interrupt_while_a_command_only_starts_shows_no_traceback(command, store, tmp_path):
    process = started("-X", "importtime", *command, "--plan", f"--tracking.outputs={tmp_path}")
    for line in process.stderr:
        if line.split()[-1] == "segpipe":  # as long as its own imports take, nobody else deals with signals
            break
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in shown


def test_what_nohup_protects_goes_on(client, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = begun(started("-c", LOADING))
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 128 + signal.SIGTERM


def test_a_killed_step_leaves_its_log_and_the_next_one_ends_its_run(client, tmp_path):
    from segpipe.orchestration import orphans, step_log

    process = begun(started("-c", WAITING, str(tmp_path)))
    process.kill()
    process.communicate()
    run = run_of(client, process)
    assert run.info.status == "RUNNING"
    assert step_log.tail(run) == ["begun"]
    assert orphans.reap(lambda _: None) == [run.info.run_id]
    assert client.get_run(run.info.run_id).data.tags["segpipe.reason"] == f"its process is gone (pid {process.pid})"


def test_a_step_ends_when_its_driver_is_gone(client, tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    named = f"{driver.pid}:{processes.started(driver.pid)}"
    process = begun(started("-c", WAITING, str(tmp_path), SEGPIPE_DRIVER=named))
    time.sleep(1.5)
    assert process.poll() is None
    driver.kill()
    driver.wait()
    assert ended(process)[0] == 128 + signal.SIGTERM
    assert run_of(client, process).data.tags["segpipe.reason"] == "interrupted (SIGTERM)"


def test_a_given_run_is_killed_where_the_step_is_stopped_before_it_begins(client):
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    process = begun(started("-c", LOADING, MLFLOW_RUN_ID=given))
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 128 + signal.SIGTERM
    run = client.get_run(given)
    assert (run.info.status, run.data.tags["segpipe.reason"]) == ("KILLED", "interrupted (SIGTERM)")


# --- a training


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "raw", cases=12)


def training(raw, outputs, *more):
    knobs = ["--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={outputs}", *TINY, *more]
    return started("-m", "steps.train", *knobs)


def checkpoints(outputs):
    return list((outputs / "checkpoints").glob("*/*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_that_is_stopped_keeps_a_checkpoint_and_its_log(client, raw, tmp_path, number, workers):
    knobs = (f"--train.processes={workers}", f"--seed={number + 100 * workers}")
    process = training(raw, tmp_path, "--train.epochs=10000", *knobs)
    wait_for(process, lambda: checkpoints(tmp_path))
    process.send_signal(number)
    code, shown = ended(process)
    assert code == 128 + number, shown
    assert checkpoints(tmp_path)
    run = run_of(client, process)
    assert (run.info.status, run.data.tags["segpipe.reason"]) == ("KILLED", f"interrupted ({number.name})")
    assert "epoch 1/10000" in log_of(run)
    assert processes.alive(run.data.tags) is False


@pytest.mark.slow
def test_a_killed_training_is_ended_by_the_next_step_and_goes_on_with_its_log(client, raw, tmp_path):
    process = training(raw, tmp_path, "--train.epochs=200")
    wait_for(process, lambda: checkpoints(tmp_path))
    process.kill()
    process.communicate()
    left = run_of(client, process)
    assert left.info.status == "RUNNING"
    process = training(raw, tmp_path, "--train.epochs=200")
    wait_for(process, lambda: client.get_run(left.info.run_id).data.tags[processes.PID] == str(process.pid))
    _, shown = process.communicate()
    assert process.returncode == 0, shown
    assert f"run {left.info.run_id} ({left.info.run_name}) was left RUNNING" in shown
    run = client.get_run(left.info.run_id)
    assert run.info.status == "FINISHED"
    assert "segpipe.reason" not in run.data.tags
    lines = log_of(run).splitlines()
    told = [line for line in lines if line.startswith("epoch ")]
    assert len(set(told)) == 200
    assert len(told) <= 201  # the last one before the end is told again
    assert f"continues run {left.info.run_id}" in lines
    assert told[-1].startswith("epoch 200/200")
    assert lines[-1].startswith("train: val Dice ")
    assert not list(tmp_path.glob("logs/*"))


@pytest.mark.slow
def test_the_processes_of_a_training_end_when_the_one_that_started_them_is_killed(client, raw, tmp_path):
    import psutil

    process = training(raw, tmp_path, "--train.processes=2", "--train.epochs=10000", "--seed=5")
    wait_for(process, lambda: checkpoints(tmp_path))
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if WORKERS in p.cmdline()]
    assert len(workers) == 2
    process.kill()
    process.communicate()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_what_a_step_was_made_of_is_kept_with_its_run(client, raw, tmp_path, step):
    from segpipe.orchestration import keys
    from segpipe.tracking import artifacts

    code, shown = step(
        "preprocess", "--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={tmp_path}", *TINY
    )
    assert code == 0, shown
    (run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "tags.`segpipe.step` = 'preprocess'", max_results=1
    )
    made_of = json.loads(artifacts.local(f"runs:/{run.info.run_id}/{keys.MADE_OF}").read_text())
    assert "images/case0.png" in made_of[keys.RAW]
    *_, read, figure, page = log_of(run).splitlines()
    assert read.startswith("preprocess: 12/12")
    assert figure == "preprocess: 7/2/3 train/val/test cases of 12 patients"
    assert page.endswith("/artifacts/dataset/samples.png")


def test_a_command_that_has_ended_in_a_process_that_goes_on_leaves_signals_to_what_comes():
    @click.command("done", cls=command.Command)
    def done():
        pass

    done.main([])
    assert signal.SIG_IGN not in {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
