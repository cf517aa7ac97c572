import os
import time

import pytest

from segpipe.errors import InputError
from segpipe.files import hashes, inventory
from segpipe.files.inventory import Written

GRAIN_NS = 50_000_000  # file systems here tell times to some ms
NAMES = ("train_images.npy", "sub dir/Größe 1.csv", "empty")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "GRAIN_NS", GRAIN_NS)


def settle():
    """Wait until a change would have another time."""
    time.sleep(1.5 * GRAIN_NS / 1e9)


@pytest.fixture
def dataset(tmp_path):
    """A finished folder with its inventory."""
    folder = tmp_path / "dataset"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name == "empty" else name.encode() * 3)
    inventory.write(folder)
    return folder


def change_unseen(path, content):
    """Other bytes of the same length, with the old modification time."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_inventory_tells_size_and_digest_of_every_other_file(dataset):
    found = inventory.read(dataset)
    assert list(found) == sorted(NAMES)
    assert found["empty"] == Written(0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert found["sub dir/Größe 1.csv"].size == len("sub dir/Größe 1.csv".encode()) * 3
    assert inventory.of(dataset) == found


def test_a_folder_as_it_was_written_is_whole(dataset):
    assert inventory.damage(dataset) == ""


def test_a_renamed_folder_is_whole_and_so_is_one_with_a_file_too_many(dataset, tmp_path):
    (dataset / "more.txt").write_text("x")
    (dataset / ".hidden").write_text("x")
    assert inventory.damage(dataset.rename(tmp_path / "other")) == ""


def test_an_empty_folder_is_whole(tmp_path):
    inventory.write(tmp_path)
    assert inventory.read(tmp_path) == {}
    assert inventory.damage(tmp_path) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_gone_is_missed(dataset, name):
    (dataset / name).unlink()
    assert inventory.damage(dataset) == f"dataset/{name} is missing"


def test_a_folder_in_the_place_of_a_file_is_no_file(dataset):
    (dataset / "empty").unlink()
    (dataset / "empty").mkdir()
    assert inventory.damage(dataset) == "dataset/empty is missing"


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_file_that_lacks_a_byte_is_cut_short(dataset, name):
    os.truncate(dataset / name, (dataset / name).stat().st_size - 1)
    assert inventory.damage(dataset) == f"dataset/{name} is cut short"


def test_a_file_with_a_byte_more_is_not_what_was_written(dataset):
    (dataset / "empty").write_bytes(b"x")
    assert inventory.damage(dataset) == "dataset/empty is not what was written"


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_flipped_byte_is_found_even_with_the_old_modification_time_and_a_warm_memory(dataset, name):
    settle()
    assert inventory.damage(dataset) == ""
    content = (dataset / name).read_bytes()
    change_unseen(dataset / name, bytes([content[0] ^ 1]) + content[1:])
    assert inventory.damage(dataset) == f"dataset/{name} is not what was written"


def test_a_flipped_byte_just_after_writing_is_found(dataset):
    assert inventory.damage(dataset) == ""
    content = (dataset / NAMES[0]).read_bytes()
    change_unseen(dataset / NAMES[0], b"X" + content[1:])
    assert inventory.damage(dataset) == f"dataset/{NAMES[0]} is not what was written"


def test_without_its_inventory_nothing_is_whole(dataset, tmp_path):
    (dataset / inventory.FILE).unlink()
    assert inventory.damage(dataset) == "dataset/inventory.json is missing"
    assert inventory.damage(tmp_path / "gone") == "gone/inventory.json is missing"


ENTRY = '{"size": 1, "sha256": "0"}'


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"a": 3}', '{"a": {"size": "1", "sha256": "0"}}', '{"a": {"size": 1}}']
    + [f'{{"{name}": {ENTRY}}}' for name in ("/etc/passwd", "../a", "a/../../b", "./a")],
)
def test_a_damaged_inventory_is_no_inventory(dataset, content):
    (dataset / inventory.FILE).write_text(content)
    assert inventory.damage(dataset) == "dataset/inventory.json is not what was written"
    with pytest.raises(InputError, match=r"dataset/inventory\.json: not a valid inventory; run the step"):
        inventory.read(dataset)


def test_what_cannot_be_read_is_damage(dataset):
    (dataset / inventory.FILE).unlink()
    (dataset / inventory.FILE).symlink_to(dataset / inventory.FILE)
    assert inventory.damage(dataset) == "dataset can't be read (Too many levels of symbolic links)"


def test_a_second_look_reads_nothing_once_the_files_have_settled(dataset, monkeypatch):
    settle()
    assert inventory.damage(dataset) == ""
    began, size = time.process_time(), 300_000_000
    with (dataset / "large").open("wb") as file:
        file.truncate(size)
    settle()
    inventory.write(dataset)
    first = time.process_time() - began
    began = time.process_time()
    assert inventory.damage(dataset) == ""
    assert time.process_time() - began < first / 3


def test_writing_that_fails_leaves_the_old_inventory(dataset):
    before = inventory.read(dataset)
    (dataset / f".{inventory.FILE}.{os.getpid()}").mkdir()
    with pytest.raises(OSError, match="directory"):
        inventory.save({}, dataset)
    assert inventory.read(dataset) == before
