"""The cache by content, before a store that is another folder; before a real server: test_fetched_from_a_server.py."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from segpipe.errors import InputError
from segpipe.files import inventory
from segpipe.tracking import artifact_cache

MB = 1_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


@pytest.fixture
def store(tmp_path):
    """An artifact store of a run."""
    return tmp_path / "server" / "run"


def write(store, name, size=MB, letter=b"x"):
    """A folder of two files of `size` bytes together, and where it will be in the cache."""
    for path, content in (("sub dir/ü b.bin", letter * (size - 1)), ("a.txt", letter)):
        (store / name / path).parent.mkdir(parents=True, exist_ok=True)
        (store / name / path).write_bytes(content)
    inventory.write(store / name)
    found = artifact_cache.find(str(store), name)
    return found.key


def cached(cache):
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_a_folder_is_fetched_whole_and_only_what_its_inventory_names(store, cache):
    key = write(store, "dataset")
    (store / "dataset" / "extra").write_text("x")
    folder = artifact_cache.local(str(store), "dataset")
    assert folder == cache / key
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "a.txt",
        "sub dir/ü b.bin",
        inventory.FILE,
    }
    assert (folder / "sub dir/ü b.bin").read_bytes() == (store / "dataset/sub dir/ü b.bin").read_bytes()


def test_what_is_in_the_cache_is_not_fetched_again(store):
    write(store, "dataset")
    first = artifact_cache.local(str(store), "dataset")
    shutil.rmtree(store / "dataset" / "sub dir")
    assert artifact_cache.local(str(store), "dataset") == first
    assert artifact_cache.local(str(store), "dataset", "sub dir/ü b.bin") == first / "sub dir/ü b.bin"
    assert artifact_cache.local(str(store), "dataset", "sub dir") == first / "sub dir"


def test_equal_folders_of_two_runs_share_a_place(tmp_path, cache):
    keys = {write(tmp_path / run, "dataset") for run in ("one", "two")}
    folders = {artifact_cache.local(str(tmp_path / run), "dataset") for run in ("one", "two")}
    assert len(keys) == len(folders) == len(cached(cache)) == 1


def test_a_single_file_does_not_bring_its_folder_along(store, cache):
    write(store, "dataset")
    path = artifact_cache.local(str(store), "dataset", "a.txt")
    assert path.read_bytes() == b"x"
    assert not cache.exists()


def test_a_folder_without_an_inventory_or_a_file_that_it_does_not_name_is_not_for_the_cache(store):
    (store / "config").mkdir(parents=True)
    (store / "config" / "resolved.yaml").write_text("seed: 1")
    assert artifact_cache.local(str(store), "config", "resolved.yaml") is None
    assert artifact_cache.local(str(store), "gone") is None
    write(store, "dataset")
    assert artifact_cache.local(str(store), "dataset", "later.txt") is None
    assert artifact_cache.local(str(store), "dataset", "sub") is None


@pytest.mark.parametrize("inside", ["", "a.txt"])
def test_what_comes_otherwise_than_it_was_written_is_refused(store, cache, inside):
    write(store, "dataset")
    (store / "dataset" / "a.txt").write_bytes(b"y")
    with pytest.raises(InputError, match=r"dataset: (dataset/)?a\.txt is not what was written, as fetched; try again"):
        artifact_cache.local(str(store), "dataset", inside)
    assert not cache.exists() or cached(cache) == set()
    (store / "dataset" / "a.txt").write_bytes(b"x")
    assert artifact_cache.local(str(store), "dataset", inside).exists()


def test_a_copy_in_the_cache_that_got_damaged_is_fetched_again(store):
    write(store, "dataset")
    folder = artifact_cache.local(str(store), "dataset")
    os.truncate(folder / "sub dir/ü b.bin", 3)
    assert artifact_cache.local(str(store), "dataset") == folder
    assert inventory.damage(folder) == ""


def test_a_damaged_copy_is_replaced_while_another_process_reads_it(store, cache):
    key = write(store, "dataset")
    folder = artifact_cache.local(str(store), "dataset")
    with (folder / "sub dir/ü b.bin").open("rb") as reading:
        (folder / "a.txt").unlink()
        assert artifact_cache.local(str(store), "dataset") == folder
        assert reading.read() == (store / "dataset/sub dir/ü b.bin").read_bytes()
    assert inventory.damage(folder) == ""
    assert cached(cache) == {key}


def test_a_copy_that_somebody_removed_is_fetched_again(store, cache):
    write(store, "dataset")
    folder = artifact_cache.local(str(store), "dataset")
    shutil.rmtree(cache)
    assert artifact_cache.local(str(store), "dataset") == folder
    assert inventory.damage(folder) == ""


def test_what_a_dead_process_left_half_fetched_is_never_taken_for_whole(store, cache):
    key = write(store, "dataset")
    partial = cache / f"{key}.partial"
    (partial / "dataset").mkdir(parents=True)
    (partial / "dataset" / "a.txt").write_bytes(b"half")
    folder = artifact_cache.local(str(store), "dataset")
    assert inventory.damage(folder) == ""
    assert cached(cache) == {key}


FETCHING = (
    "import fcntl, pathlib, sys, time; target = pathlib.Path(sys.argv[1]); target.parent.mkdir(parents=True);"
    "lock = target.with_suffix('.lock').open('w'); fcntl.flock(lock, fcntl.LOCK_EX);"
    "target.with_suffix('.partial').mkdir(); print('fetching', flush=True); time.sleep(60)"
)


def test_who_waits_for_a_process_that_dies_while_it_fetches_takes_over(store, cache):
    key = write(store, "dataset")
    other = subprocess.Popen([sys.executable, "-c", FETCHING, str(cache / key)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "fetching\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(artifact_cache.local, str(store), "dataset")
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        other.kill()
        other.communicate()
        assert inventory.damage(waiting.result(timeout=10)) == ""
    assert cached(cache) == {key}


def test_a_cache_that_cannot_be_made_says_which_variable_to_set(store, tmp_path):
    write(store, "dataset")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="set SEGPIPE_CACHE to a folder"):
        artifact_cache.local(str(store), "dataset")


def test_damage_is_told_from_the_listing_alone(store):
    write(store, "dataset")
    assert artifact_cache.damage(str(store), "dataset") == ""
    os.truncate(store / "dataset" / "sub dir/ü b.bin", 5)
    assert artifact_cache.damage(str(store), "dataset") == "dataset/sub dir/ü b.bin is cut short"
    (store / "dataset" / "sub dir/ü b.bin").unlink()
    assert artifact_cache.damage(str(store), "dataset") == "dataset/sub dir/ü b.bin is missing"
    (store / "dataset" / inventory.FILE).write_text("{")
    assert artifact_cache.damage(str(store), "dataset") == "dataset/inventory.json is not what was written"
    (store / "dataset" / inventory.FILE).unlink()
    assert artifact_cache.damage(str(store), "dataset") == "dataset/inventory.json is missing"


def test_all_but_one_folder_is_copied(store):
    write(store, "artifacts/segpipe")
    (store / "artifacts" / "other.txt").write_text("o")
    (store / "MLmodel").write_text("m")
    (store / "code" / "segpipe").mkdir(parents=True)
    (store / "code" / "segpipe" / "x.py").write_text("pass")
    folder = artifact_cache.copy_without(str(store), "artifacts/segpipe")
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert copied == {"artifacts/other.txt", "MLmodel", "code/segpipe/x.py"}
