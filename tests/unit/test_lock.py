"""Nobody is inside while another is: under any interleaving in simulated time, and over the tags of a real store."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from conftest import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.errors import ConflictError
from segpipe.files.project import PROJECT
from segpipe.registry import lock
from segpipe.runtime import processes
from segpipe.tracking import one_at_a_time

HEART = "heart of "


class KilledError(Exception):
    """Nothing of what would still happen does."""


class World:
    """Entries in memory and a clock, for threads of which one runs at a time: a seed decides which and for how long.

    At each operation a thread sleeps up to half a second, with probability `naps` up to 90 s, and with probability
    `kills` its contender sleeps for ever, unless it is the last one. Inside, each contender has one more thread, its
    heart. `passed` has the contender of each passed check, in order.
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
        owner = me.removeprefix(HEART)
        if owner in self.dead:
            raise KilledError
        self.due[me] = self.now + seconds + self.rng.random() * (90 if self.rng.random() < self.naps else 0.5)
        self.over.release()
        self.wake[me].acquire()
        last = len(self.dead) == len(self.names) - 1
        if owner not in self.dead and not last and self.rng.random() < self.kills:
            self.dead.add(owner)
        if owner in self.dead:
            raise KilledError

    @contextmanager
    def heart(self, contender):
        """As one_at_a_time.heartbeat, in this world's time."""
        name, stopped = HEART + threading.current_thread().name, []

        def beat():
            self.wake[name].acquire()
            with suppress(KilledError):
                while not stopped:
                    contender.beat()
                    self.sleep(one_at_a_time.BEAT)
            del self.due[name]
            self.over.release()

        thread = threading.Thread(target=beat, name=name, daemon=True)
        self.wake[name], self.due[name] = threading.Semaphore(0), self.now + one_at_a_time.BEAT
        thread.start()
        try:
            yield
        finally:
            stopped.append(True)
            while name in self.due and threading.current_thread().name not in self.dead:
                self.sleep()

    def contend(self):
        me = threading.current_thread().name
        self.wake[me].acquire()
        board = Seat(self)
        try:
            with one_at_a_time.exclusive(board, lambda *_: None, self.sleep, self.clock, self.heart) as contender:
                for _ in range(4):
                    contender.check()
                    self.passed.append(me)
                    self.sleep(1.0)
            self.finished.append(me)
        except ConflictError:
            self.refused.append(me)
        except KilledError:
            pass
        finally:
            del self.due[me]
            self.over.release()

    def run(self):
        threads = [threading.Thread(target=self.contend, name=name, daemon=True) for name in self.names]
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


class Seat:
    """A contender's board: `entries` of a world, each operation after a sleep of that world, or at once."""

    def __init__(self, world):
        self.entries, self.sleep, self.numbers = world.entries, world.sleep, itertools.count()
        self.renew()

    def renew(self):
        self.own = f"{id(self)}.{next(self.numbers)}"

    def look(self):
        self.sleep()
        others = {who: one_at_a_time.Entry(value, {}) for who, value in self.entries.items() if who != self.own}
        return self.own in self.entries, others

    def write(self, beat):
        own = self.own
        self.sleep()
        self.entries[own] = str(beat)

    def remove(self):
        self.discard(self.own)
        self.renew()

    def discard(self, other):
        self.sleep()
        self.entries.pop(other, None)


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
    assert len(world.dead) < contenders
    if not naps and not kills:
        assert sorted(world.finished) == world.names
        assert world.entries == {}


class Still:
    """A world in which only the test moves the clock."""

    def __init__(self):
        self.entries, self.now = {}, 0.0

    def sleep(self, _seconds=0.0):
        pass

    def clock(self):
        return self.now


def test_who_is_suspended_inside_for_too_long_is_told_so():
    world = Still()
    with one_at_a_time.exclusive(Seat(world), lambda *_: None, clock=world.clock) as contender:
        contender.check()
        world.now += one_at_a_time.TRUSTED + 1
        with pytest.raises(ConflictError, match="took too long"):
            contender.check()
    assert world.entries == {}


def test_who_may_have_slept_through_its_own_removal_does_not_come_back():
    world = Still()
    contender = one_at_a_time.Contender(Seat(world), world.clock)
    assert contender.attempt()
    world.entries.clear()
    world.now += one_at_a_time.DEAD_AFTER + 1
    for _ in range(2):
        contender.beat()
        with pytest.raises(ConflictError, match="took too long"):
            contender.check()


def test_whose_entry_somebody_removed_is_told_so():
    world = Still()
    with one_at_a_time.exclusive(Seat(world), lambda *_: None, clock=world.clock) as contender:
        contender.check()
        world.entries.clear()
        with pytest.raises(ConflictError, match="took too long"):
            contender.check()


def test_signs_of_life_keep_a_turn_for_as_long_as_it_takes():
    world = Still()
    other = one_at_a_time.Contender(Seat(world), world.clock)
    with one_at_a_time.exclusive(Seat(world), lambda *_: None, clock=world.clock) as contender:
        for _ in range(100):
            world.now += one_at_a_time.BEAT
            contender.beat()
            contender.check()
            assert other.look()[1] is not None
    assert other.attempt()


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
    monkeypatch.setattr(one_at_a_time, "PAUSE", 0.02)
    threads = [threading.Thread(target=counted, args=(model, 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tags(model) == {"count": "12"}


COUNTING = """
import os, sys
sys.path[:0] = ["tests", "tests/unit"]
from segpipe.tracking import connection, one_at_a_time
import test_lock
one_at_a_time.PAUSE = 0.05
children = []
for _ in range(6):
    child = os.fork()
    if not child:
        connection.connect()
        test_lock.counted(sys.argv[1], 2)
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
def test_who_is_killed_inside_is_removed_at_once_and_who_is_interrupted_goes_by_itself(model, number, left):
    program = [sys.executable, "-c", INSIDE, model]
    with subprocess.Popen(program, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        wait_for(other, lambda: other.stdout.readline().strip() == "inside")
        os.kill(other.pid, number)
        other.communicate()
    assert len(tags(model)) == left
    began = time.monotonic()
    with lock.turn(model, never) as turn:
        turn.check()
        assert len(tags(model)) == 1
    assert time.monotonic() - began < 10
    assert tags(model) == {}


def never(text):
    """For what must not wait."""
    raise AssertionError(text)


def test_who_is_only_stopped_is_waited_for(model, monkeypatch):
    monkeypatch.setattr(one_at_a_time, "DEAD_AFTER", 1.0)
    program, told = [sys.executable, "-c", INSIDE, model], []
    with subprocess.Popen(program, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        wait_for(other, lambda: other.stdout.readline().strip() == "inside")
        other.send_signal(signal.SIGSTOP)
        threading.Timer(4, other.kill).start()
        began = time.monotonic()
        with lock.turn(model, told.append):
            assert time.monotonic() - began > 3.5
    owner = f"host {processes.host()}, pid {other.pid}"
    assert told == [f"waiting for another registration of {model} ({owner})"]
    assert tags(model) == {}


@pytest.mark.parametrize("value", ["made by hand", "4:0", "choosing:2", "another 12 34 5"], ids=range(4))
def test_an_entry_by_hand_of_an_earlier_version_or_from_elsewhere_goes_after_a_while(model, monkeypatch, value):
    from mlflow import MlflowClient

    monkeypatch.setattr(one_at_a_time, "DEAD_AFTER", 1.0)
    MlflowClient().set_registered_model_tag(model, f"{lock.PREFIX}x", value)
    told, began = [], time.monotonic()
    with lock.turn(model, told.append):
        assert f"{lock.PREFIX}x" not in tags(model)
    assert time.monotonic() - began > 1.0
    assert len(told) == 1
