"""Nobody is inside while another is: under any interleaving in simulated time, and over the tags of a real store."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.registry import lock


class KilledError(Exception):
    """Nothing of what would still happen does."""


class World:
    """A board in memory and a clock, for threads of which one runs at a time: a seed decides which and for how long.

    At each operation a contender sleeps up to half a second, with probability `naps` up to 45 s, and with
    probability `kills` for ever. `passed` has the contender of each passed check, in order.
    """

    def __init__(self, seed, contenders, naps, kills):
        self.rng, self.naps, self.kills = np.random.default_rng(seed), naps, kills
        self.now, self.entries, self.dead = 0.0, {}, set()
        self.passed, self.finished, self.refused = [], [], []
        self.names = [str(n) for n in range(contenders)]
        self.wake = {name: threading.Semaphore(0) for name in self.names}
        self.due = {name: self.rng.random() for name in self.names}
        self.over = threading.Semaphore(0)

    def clock(self):
        return self.now

    def sleep(self, seconds=0.0):
        me = threading.current_thread().name
        if me in self.dead:
            raise KilledError
        self.due[me] = self.now + seconds + self.rng.random() * (45 if self.rng.random() < self.naps else 0.5)
        self.over.release()
        self.wake[me].acquire()
        if self.rng.random() < self.kills:
            self.dead.add(me)
            raise KilledError

    def read(self):
        self.sleep()
        return dict(self.entries)

    def write(self, who, value):
        self.sleep()
        self.entries[who] = value

    def remove(self, who):
        self.sleep()
        self.entries.pop(who, None)

    def contend(self):
        me = threading.current_thread().name
        self.wake[me].acquire()
        try:
            with lock.take(self, lambda: None, self.clock, self.sleep) as contender:
                for _ in range(4):
                    contender.check()
                    self.passed.append(me)
                    self.sleep(1.0)
            self.finished.append(me)
        except InputError:
            self.refused.append(me)
        except KilledError:
            pass
        finally:
            del self.due[me]
            self.over.release()

    def run(self):
        threads = [threading.Thread(target=self.contend, name=name) for name in self.names]
        for thread in threads:
            thread.start()
        while self.due:
            name = min(self.due, key=self.due.__getitem__)
            self.now = max(self.now, self.due[name])
            assert self.now < 36_000, "somebody waits for ever"
            self.wake[name].release()
            self.over.acquire()
        for thread in threads:
            thread.join()
        return self


def blocks(names):
    """Names without repetitions one behind the other."""
    return [name for before, name in zip([None, *names], names, strict=False) if name != before]


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    contenders=st.integers(2, 5),
    naps=st.sampled_from([0.0, 0.05, 0.2]),
    kills=st.sampled_from([0.0, 0.03]),
)
def test_never_are_two_inside_whoever_sleeps_or_dies(seed, contenders, naps, kills):
    world = World(seed, contenders, naps, kills).run()
    turns_taken = blocks(world.passed)
    assert len(turns_taken) == len(set(turns_taken))
    assert {*world.finished, *world.refused, *world.dead} == set(world.names)
    if not naps and not kills:
        assert sorted(world.finished) == world.names
        assert world.entries == {}


class Memory(dict):
    """A board of one process."""

    def read(self):
        return dict(self)

    def write(self, who, value):
        self[who] = value

    def remove(self, who):
        self.pop(who, None)


def test_who_is_suspended_inside_for_too_long_is_told_so():
    board, now = Memory(), [0.0]
    with lock.take(board, lambda: None, lambda: now[0]) as contender:
        contender.check()
        now[0] += lock.TRUSTED + 1
        with pytest.raises(InputError, match="took too long"):
            contender.check()
    assert board == {}


def test_who_may_have_slept_through_its_own_removal_does_not_come_back():
    board, now = Memory(), [0.0]
    contender = lock.Contender(board, lambda: now[0])
    ticket = contender.draw()
    board.remove(contender.who)
    now[0] += lock.DEAD_AFTER + 1
    with pytest.raises(lock._OversleptError):
        contender.show(str(ticket))


@pytest.fixture
def model(store, request):
    """A registered model without versions."""
    from mlflow import MlflowClient

    name = f"contended {request.node.name[-40:]}".replace("[", " ").replace("]", "")
    MlflowClient().create_registered_model(name)
    return name


def counted(name, times):
    """Add one to a tag so many times, reading it before and writing it after: lost updates show."""
    from mlflow import MlflowClient

    client = MlflowClient()
    for _ in range(times):
        with lock.turn(name, lambda _: None) as turn:
            value = int(client.get_registered_model(name).tags.get("count", "0"))
            turn.check()
            client.set_registered_model_tag(name, "count", str(value + 1))


def tags(name):
    from mlflow import MlflowClient

    return MlflowClient().get_registered_model(name).tags


def test_threads_lose_no_update(model, monkeypatch):
    monkeypatch.setattr(lock, "PAUSE", 0.02)
    threads = [threading.Thread(target=counted, args=(model, 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tags(model) == {"count": "12"}


COUNTING = """
import os, sys
sys.path[:0] = ["tests", "tests/unit"]
from segpipe.registry import lock
from segpipe.tracking import connection
import test_turns
lock.PAUSE = 0.05
children = []
for _ in range(6):
    child = os.fork()
    if not child:
        connection.connect()
        test_turns.counted(sys.argv[1], 2)
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_processes_lose_no_update(model, command):
    done = command("-c", COUNTING, model)
    assert done.returncode == 0, done.stderr
    assert tags(model) == {"count": "12"}


INSIDE = """
import sys, time
from segpipe.registry import lock
from segpipe.tracking import connection
connection.connect()
with lock.turn(sys.argv[1], print):
    print("inside", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_who_is_killed_inside_is_removed_and_who_is_interrupted_goes_by_itself(model, monkeypatch, number, left):
    program = [sys.executable, "-c", INSIDE, model]
    with subprocess.Popen(program, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        wait_for(other, lambda: other.stdout.readline().strip() == "inside")
        os.kill(other.pid, number)
        other.communicate()
    assert len(tags(model)) == left
    monkeypatch.setattr(lock, "DEAD_AFTER", 1.5)
    told = []
    with lock.turn(model, told.append) as turn:
        turn.check()
        assert len(tags(model)) == 1
    assert told == [f"waiting for another registration of {model}"] * left
    assert tags(model) == {}


def test_an_entry_nobody_understands_goes_after_a_while(model, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr(lock, "DEAD_AFTER", 1.0)
    MlflowClient().set_registered_model_tag(model, f"{lock.PREFIX}x", "made by hand")
    with lock.turn(model, lambda _: None):
        assert f"{lock.PREFIX}x" not in tags(model)
