import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from segpipe.files import hashes
from segpipe.files.project import PROJECT

OLD = 1_000_000_000
GRAIN_NS = 50_000_000  # file systems here tell times to some ms


def settle():
    """Wait until a change would have another time."""
    time.sleep(1.5 * GRAIN_NS / 1e9)


@pytest.fixture(autouse=True)
def remembered(tmp_path, monkeypatch):
    """The folder of what is remembered."""
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache folder"))
    monkeypatch.setattr(hashes, "GRAIN_NS", GRAIN_NS)
    return tmp_path / "cache folder" / "digests"


@pytest.fixture
def root(tmp_path):
    """Three files that changed long enough ago."""
    root = tmp_path / "röntgen bilder"
    (root / "sub dir").mkdir(parents=True)
    for name in ("a.png", "sub dir/b c.png", "sub dir/ü.png"):
        (root / name).write_bytes(name.encode())
    settle()
    return root


def shown(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def digests_of(root):
    return hashes.of(shown(root), root)


def falsify(remembered):
    """Change what is remembered, so that an answer from memory is told from one that was read."""
    (memory,) = remembered.iterdir()
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({k: f"{v.rpartition(':')[0]}:{'0' * 64}" for k, v in known.items()}))


def test_digests_are_those_of_the_bytes_in_the_order_asked_for(root):
    paths = shown(root)[::-1]
    found = hashes.of(paths, root)
    assert list(found.items()) == [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
    assert hashes.of([], root) == {}


def test_a_file_larger_than_a_chunk_is_read_to_its_end(tmp_path):
    content = os.urandom(2 * hashes.CHUNK + 17)
    (tmp_path / "x").write_bytes(content)
    assert hashes.of([tmp_path / "x"], tmp_path) == {tmp_path / "x": hashlib.sha256(content).hexdigest()}


def test_a_file_that_has_not_changed_is_not_read_again(root, remembered):
    digests_of(root)
    falsify(remembered)
    assert set(digests_of(root).values()) == {"0" * 64}


@pytest.mark.parametrize("change", ["bytes", "bytes, with the old times", "another file of that name", "times only"])
def test_a_file_that_changed_is_read_again(root, remembered, change):
    digests_of(root)
    falsify(remembered)
    path = root / "sub dir" / "ü.png"
    before, content = path.stat(), path.read_bytes()
    if change == "another file of that name":
        (root / "new").write_bytes(content)
        (root / "new").replace(path)
    elif change != "times only":
        content = b"X" + content[1:]
        path.write_bytes(content)
    if change != "bytes":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    expected = hashlib.sha256(content).hexdigest()
    assert digests_of(root) == {p: expected if p == path else "0" * 64 for p in shown(root)}


def test_a_file_that_changed_just_before_it_was_read_is_not_remembered(root, remembered):
    (root / "a.png").write_bytes(b"now")
    digests_of(root)
    (memory,) = remembered.iterdir()
    assert set(json.loads(memory.read_text())) == {"sub dir/b c.png", "sub dir/ü.png"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a.png": 3}', b'{"a.png": "x"}', b"\xff\xfe"])
def test_a_damaged_memory_is_ignored_and_replaced(root, remembered, content):
    right = digests_of(root)
    (memory,) = remembered.iterdir()
    memory.write_bytes(content)
    assert digests_of(root) == right
    falsify(remembered)
    assert set(digests_of(root).values()) == {"0" * 64}


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(root, tmp_path):
    (tmp_path / "cache folder").write_text("a file where the folder should be")
    assert digests_of(root)[root / "a.png"] == hashlib.sha256(b"a.png").hexdigest()


def test_what_is_remembered_goes_with_a_folder_that_is_renamed(root, remembered):
    digests_of(root)
    falsify(remembered)
    after = root.rename(root.with_name("after"))
    hashes.carry_over(root, after)
    assert set(digests_of(after).values()) == {"0" * 64}
    assert len(list(remembered.iterdir())) == 1


def test_what_was_not_looked_at_for_months_is_forgotten(root, tmp_path, remembered):
    digests_of(root)
    (memory,) = remembered.iterdir()
    os.utime(memory, (OLD, OLD))
    other = tmp_path / "other"
    other.mkdir()
    (root / "a.png").rename(other / "a.png")
    settle()
    digests_of(other)
    assert memory not in remembered.iterdir()
    assert len(list(remembered.iterdir())) == 1


def test_progress_is_told_of_many_files_that_have_to_be_read_and_of_no_others(root, tmp_path):
    told = []
    many = tmp_path / "many"
    many.mkdir()
    for number in range(hashes.MANY):
        (many / f"{number:04d}").write_bytes(b"x")
    hashes.of(shown(root), root, lambda *step: told.append(step))
    assert told == []
    hashes.of(shown(many), many, lambda *step: told.append(step))
    assert told[0] == (1, hashes.MANY, "0000")
    assert told[-1] == (hashes.MANY, hashes.MANY, f"{hashes.MANY - 1:04d}")


def test_an_interrupt_leaves_what_was_read_remembered_and_ends_soon(root, tmp_path, remembered):
    """Reading is broken off within a large file: here one that never ends."""
    program = (
        f"import pathlib, sys; from segpipe.files import hashes; hashes.GRAIN_NS = {GRAIN_NS};"
        "root = pathlib.Path(sys.argv[1]);"
        "hashes.of([*sorted(p for p in root.rglob('*') if p.is_file()), pathlib.Path('/dev/zero')], pathlib.Path('/'))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(root)], cwd=PROJECT, stderr=subprocess.DEVNULL)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(2)
    assert process.wait(timeout=5) != 0
    (memory,) = remembered.iterdir()
    assert len(json.loads(memory.read_text())) == 3


def test_processes_that_remember_at_once_lose_nothing_but_time(root, remembered):
    program = (
        "import pathlib, sys; from segpipe.files import hashes; root = pathlib.Path(sys.argv[1]);"
        "print(sorted(hashes.of([p for p in root.rglob('*') if p.is_file()], root).values()))"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", program, str(root)], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {process.communicate()[0].strip() for process in several}
    assert answers == {str(sorted(digests_of(root).values()))}
    assert [path.suffix for path in remembered.iterdir()] == [".json"]


def test_the_cache_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert hashes.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("SEGPIPE_CACHE")
    assert hashes.cache_folder() == tmp_path / "b" / "segpipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hashes.cache_folder() == tmp_path / "c" / ".cache" / "segpipe"
