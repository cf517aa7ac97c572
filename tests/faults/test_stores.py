"""Stores that fail in the middle of a chain: one clear line, nothing corrupted, and the next start completes it."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
from chains import chain, check_whole, disk, new_chain, remount, results, undisturbed

__all__ = ["chain", "undisturbed"]

FULL = {"artifacts": ("mlruns", "1m"), "outputs": ("out puts", "300k"), "everything": (".", "3m")}
HOLD = """
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
store.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def check_refused(chain, driver, *told):
    """It ended with one line that says what is wrong, and the database is whole."""
    assert driver.end() == 1, driver.shown()
    assert "Traceback" not in driver.shown()
    assert driver.told().startswith("segpipe pipeline: ")
    assert any(phrase in driver.told() for phrase in told), driver.shown()
    check_database(chain.home / "mlflow.db")


def check_database(path):
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def locked(chain, seconds):
    """Another process has the database for itself."""
    program = [sys.executable, "-c", HOLD, str(chain.home / "mlflow.db"), str(seconds)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield
        holder.kill()


@pytest.mark.slow
@pytest.mark.parametrize("what", FULL)
def test_on_a_full_disk_a_chain_ends_with_a_line_and_the_next_start_completes_it(undisturbed, tmp_path, what):
    name, size = FULL[what]
    place = tmp_path / "home" / name
    with disk(place, size):
        chain = new_chain(tmp_path)
        check_refused(chain, chain.start(), "No space left on device", "disk is full")
        remount(place, "size=100m")
        chain.finish()
        check_whole(chain, undisturbed[1], tmp_path / "checked")


def test_a_store_that_can_only_be_read_is_told_in_a_line(tmp_path):
    with disk(tmp_path / "home" / "mlruns", "10m"):
        chain = new_chain(tmp_path)
        remount(chain.home / "mlruns", "ro")
        check_refused(chain, chain.start(), "Read-only file system")
        assert chain.running() == []


@pytest.mark.slow
def test_a_store_that_becomes_read_only_ends_a_chain_which_the_next_start_completes(undisturbed, tmp_path):
    place = tmp_path / "home" / "mlruns"
    with disk(place, "100m"):
        chain = new_chain(tmp_path)
        driver = chain.start()
        driver.until(chain.checkpoints)
        remount(place, "ro")
        check_refused(chain, driver, "Read-only file system")
        assert chain.running() == []
        remount(place, "rw")
        assert "preprocess: reuse" in chain.finish()
        check_whole(chain, undisturbed[1], tmp_path / "checked")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["preprocess", "train", "register"])
def test_a_chain_waits_for_a_database_that_another_process_has_for_ten_seconds(undisturbed, chain, tmp_path, step):
    driver = chain.start()
    driver.until(lambda: driver.step(step))
    with locked(chain, 10):
        time.sleep(10)
    assert driver.end() == 0, driver.shown()
    check_whole(chain, undisturbed[1], tmp_path / "checked")


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_in_the_middle_of_a_chain_stops_nothing(undisturbed, server, tmp_path):
    chain = new_chain(tmp_path, server.uri)
    driver = chain.start()
    try:
        for step in ("preprocess", "train", "evaluate"):
            driver.until(lambda step=step: driver.step(step))
            server.kill()
            time.sleep(4)
            server.start()
        assert driver.end() == 0, driver.shown()
    finally:
        chain.kill()
    assert results(chain) == undisturbed[1]
    assert chain.running() == []
    check_database(server.database)


@pytest.mark.slow
def test_a_server_that_stays_away_ends_a_chain_with_a_line_and_the_next_start_completes_it(
    undisturbed, server, tmp_path
):
    chain = new_chain(tmp_path, server.uri)
    driver = chain.start()
    try:
        driver.until(lambda: driver.step("evaluate"))
        server.kill()
        assert driver.end(240) == 1, driver.shown()
        assert "Traceback" not in driver.shown()
        assert driver.told().startswith("segpipe pipeline: ")
        server.start()
        assert "train: reuse" in chain.finish()
    finally:
        chain.kill()
    assert results(chain) == undisturbed[1]
    assert chain.running() == []
    check_database(server.database)
