"""Who works on a key keeps others out for as long as it lives: threads and processes over one real store."""

import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import new_session
from mlflow.exceptions import MlflowException

from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.orchestration import claims
from segpipe.runtime import processes, signals
from segpipe.tracking import connection as stores
from segpipe.tracking import one_at_a_time

KEY = "0123456789abcdef and more"
TAG = "segpipe.claim.0123456789abcdef"


@pytest.fixture
def client(store, monkeypatch):
    from segpipe.tracking import runs

    monkeypatch.setattr(one_at_a_time, "PAUSE", 0.05)
    client = runs.MlflowClient()
    yield client
    stores.connect()
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()], "status = 'RUNNING'"):
        client.set_terminated(run.info.run_id)


def driver(client, experiment="segpipe", **tags):
    """The ID of a running run of this process, or of one that `tags` say."""
    from segpipe.tracking import experiments

    owner = {f"segpipe.{name}": value for name, value in tags.items()}
    return client.create_run(experiments.ensure(experiment), tags=processes.here() | owner).info.run_id


def silent(_text):
    """For what is not looked at."""


def never(text):
    """For what must not wait."""
    raise AssertionError(text)


def tags(client, run_id):
    return client.get_run(run_id).data.tags


def test_a_claim_is_a_tag_for_as_long_as_the_work_takes(client):
    run_id = driver(client)
    with claims.claimed(KEY, run_id, never):
        assert tags(client, run_id)[TAG] == "1"
    assert TAG not in tags(client, run_id)


@pytest.mark.parametrize("error", [RuntimeError, signals.Interrupted(signal.SIGTERM)])
def test_a_claim_ends_with_the_work_whatever_comes_of_it(client, error):
    run_id = driver(client)
    with pytest.raises((RuntimeError, signals.Interrupted)), claims.claimed(KEY, run_id, silent):
        raise error
    assert TAG not in tags(client, run_id)


def test_a_claim_that_somebody_removed_is_no_error(client):
    run_id = driver(client)
    with claims.claimed(KEY, run_id, silent):
        client.delete_tag(run_id, TAG)


def test_another_key_is_not_waited_for(client):
    with claims.claimed(KEY, driver(client), never), claims.claimed("another", driver(client), never):
        pass


def test_who_comes_second_waits_and_says_so_once(client):
    first, second, said, order = driver(client), driver(client), [], []

    def work():
        with claims.claimed(KEY, second, said.append):
            order.append("second")

    with claims.claimed(KEY, first, silent):
        other = threading.Thread(target=work)
        other.start()
        until = time.monotonic() + 10
        while not said and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    here = processes.here()
    owner = f"host {here[processes.HOST]}, pid {here[processes.PID]}"
    assert said == [f"waits for run {first} ({owner}), which is at work on the same"]


@pytest.mark.parametrize("experiments", [["segpipe"], ["segpipe", "another experiment"]])
def test_of_threads_that_ask_at_one_moment_never_are_two_inside(client, experiments):
    inside, most, failed = [], [], []
    start = threading.Barrier(4)

    def work(run_id):
        start.wait()
        try:
            with claims.claimed(KEY, run_id, silent):
                inside.append(run_id)
                most.append(len(inside))
                time.sleep(0.1)
                inside.remove(run_id)
        except Exception as error:
            failed.append(error)

    runs = [driver(client, experiments[n % len(experiments)]) for n in range(4)]
    threads = [threading.Thread(target=work, args=(run_id,)) for run_id in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert most == [1, 1, 1, 1]
    assert not any(TAG in tags(client, run_id) for run_id in runs)
    assert not [key for e in client.search_experiments() for key in e.tags if key.startswith("segpipe.turn.")]


WORK = """
import os, sys, time
from mlflow import MlflowClient
from segpipe.orchestration import claims
from segpipe.runtime import processes
from segpipe.tracking import connection, one_at_a_time
one_at_a_time.PAUSE = 0.05
connection.connect()
run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"], tags=processes.here()).info.run_id
with claims.claimed(sys.argv[1], run_id, lambda _: None):
    print("inside", flush=True)
    time.sleep(600)
"""


def test_of_two_processes_one_waits_while_the_other_lives_even_stopped_and_no_longer(client):
    program = [sys.executable, "-c", WORK, KEY]
    workers = [subprocess.Popen(program, cwd=PROJECT, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        ((inside,), _, _) = select.select([process.stdout for process in workers], [], [], 60)
        first, second = sorted(workers, key=lambda process: process.stdout is not inside)
        assert inside.readline() == b"inside\n"
        first.send_signal(signal.SIGSTOP)
        assert select.select([second.stdout], [], [], 2)[0] == []
        first.kill()
        first.wait()
        assert select.select([second.stdout], [], [], 60)[0] == [second.stdout]
    finally:
        for process in workers:
            process.kill()
            process.communicate()


def test_the_claim_of_a_run_that_has_ended_does_not_count(client):
    first = driver(client)
    client.set_tag(first, TAG, "3")
    client.set_terminated(first, "KILLED")
    with claims.claimed(KEY, driver(client), never):
        pass


def test_a_step_that_has_lost_its_driver_is_waited_for_while_it_lives(client):
    from segpipe.tracking import run_tags

    step, said = driver(client), []
    client.set_tag(step, run_tags.KEY, KEY)

    def sleep(seconds):
        client.set_terminated(step, "KILLED")
        time.sleep(seconds)

    with claims.claimed(KEY, driver(client), said.append, sleep):
        assert [line.split()[3] for line in said] == [step]
    client.set_tag(driver(client, pid="1", started="1"), run_tags.KEY, KEY)
    with claims.claimed(KEY, driver(client), never):
        pass


@pytest.mark.parametrize("error", [InputError("the step failed"), signals.Interrupted(signal.SIGINT)])
def test_a_claim_that_cannot_be_given_back_does_not_hide_why_the_work_ended(client, monkeypatch, error):
    def away(*_):
        raise MlflowException("database is locked")

    monkeypatch.setattr(claims.MlflowClient, "delete_tag", away)
    with pytest.raises(type(error), match=str(error).split()[0]), claims.claimed(KEY, driver(client), silent):
        raise error


def test_a_claim_from_another_machine_counts_while_its_counter_moves(client, monkeypatch):
    monkeypatch.setattr(one_at_a_time, "DEAD_AFTER", 1.0)
    other = driver(client, host="another machine")
    moves = iter(range(1, 6))

    def sleep(seconds):
        if beat := next(moves, None):
            client.set_tag(other, TAG, str(beat))
            time.sleep(0.4)
        time.sleep(seconds)

    client.set_tag(other, TAG, "0")
    said, began = [], time.monotonic()
    with claims.claimed(KEY, driver(client), said.append, sleep):
        assert len(said) == 1
    assert next(moves, None) is None
    assert 3.0 < time.monotonic() - began < 10


def test_a_sign_of_life_is_given_while_the_work_goes_on(client, monkeypatch):
    monkeypatch.setattr(one_at_a_time, "BEAT", 0.1)
    run_id = driver(client)
    with claims.claimed(KEY, run_id, silent):
        until = time.monotonic() + 10
        while tags(client, run_id)[TAG] in ("1", "2") and time.monotonic() < until:
            time.sleep(0.05)
        assert int(tags(client, run_id)[TAG]) >= 3
    assert TAG not in tags(client, run_id)


def test_a_signal_ends_the_wait_at_once_and_leaves_no_claim(client):
    first, second, guard = driver(client), driver(client), new_session().guard

    def wait():
        with guard.watching(), claims.claimed(KEY, second, silent, guard.pause):
            raise AssertionError

    with claims.claimed(KEY, first, silent):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(signals.Interrupted) as stop:
            wait()
    assert stop.value.number == signal.SIGTERM
    assert TAG not in tags(client, second)
