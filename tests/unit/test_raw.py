import os

from segpipe.config import DataConfig
from segpipe.data import raw


def digest(root):
    return raw.digest(DataConfig(format="folder", root=str(root)))


def test_the_digest_follows_content_and_nothing_else(folder):
    before = digest(folder)
    mask = folder / "masks" / "case1.png"
    os.utime(mask, (1, 1))
    (folder / ".DS_Store").write_bytes(b"x")
    assert digest(folder) == before
    mask.write_bytes(mask.read_bytes() + b"x")
    assert digest(folder) != before


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


def test_the_phantom_needs_no_digest():
    assert raw.digest(DataConfig()) == ""
