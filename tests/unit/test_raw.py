import hashlib
import os

import pytest

from segpipe.config.sections import DataConfig
from segpipe.data import raw
from segpipe.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))


def files(root):
    return raw.files(DataConfig(format="folder", root=str(root)))


def digest(root):
    return raw.digest(files(root))


def test_every_file_is_there_by_its_path_with_the_digest_of_its_bytes(folder):
    found = files(folder)
    assert sorted(found) == sorted(f"{name}/case{n}.png" for name in ("images", "masks") for n in range(8))
    assert found["masks/case3.png"] == hashlib.sha256((folder / "masks/case3.png").read_bytes()).hexdigest()


def test_the_digest_follows_content_and_nothing_else(folder):
    before = digest(folder)
    mask = folder / "masks" / "case1.png"
    os.utime(mask, (1, 1))
    (folder / ".DS_Store").write_bytes(b"x")
    assert digest(folder) == before
    mask.write_bytes(mask.read_bytes() + b"x")
    assert digest(folder) != before


def test_the_digest_is_that_of_earlier_versions_whatever_the_order(tmp_path):
    names = [f"images/{name}" for name in ("a/z", "a.b", "x", "ü b")]
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    found = files(tmp_path / "data")
    assert list(found) == names
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode() + b"\0" + hashlib.sha256(name.encode()).digest())
    assert raw.digest(found) == raw.digest(dict(reversed(found.items()))) == total.hexdigest()[:16]


def test_a_renamed_file_is_a_change(folder):
    before = digest(folder)
    (folder / "images" / "case1.png").rename(folder / "images" / "case1a.png")
    assert digest(folder) != before


def test_linked_folders_are_followed(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("images", "masks"):
        (linked / name).symlink_to(folder / name)
    assert digest(linked) == digest(folder)


def test_a_link_to_nowhere_is_named(folder):
    (folder / "images" / "case9.png").symlink_to(folder / "gone.png")
    with pytest.raises(InputError, match=r"data\.root .*images/case9\.png: No such file"):
        files(folder)


def test_the_phantom_has_no_files_and_needs_no_digest():
    assert raw.files(DataConfig()) == {}
    assert raw.digest({}) == ""
