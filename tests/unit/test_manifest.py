import json

import pytest
from conftest import write_folder

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.manifest import FILE
from segpipe.data.readers import open_reader
from segpipe.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    root = write_folder(tmp_path / "data")
    config = settings.load(None, {"data.format": "folder", "data.root": str(root), "preprocess.size": "32"})
    dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    return tmp_path / "dataset"


def test_it_reads_back_equal_and_counts_what_is_there(dataset):
    opened = Dataset.open(dataset)
    manifest = opened.manifest
    assert [len(manifest.of(s)) for s in ("train", "val", "test")] == [5, 1, 2]
    assert all(case.voxels["foreground"] > 0 and case.volume_ml is None for case in manifest.cases)
    assert opened.array("train_images").shape == (5, 1, 32, 32)


def cut(dataset):
    path = dataset / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-100])


def other_format(dataset):
    path = dataset / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: (d / FILE).unlink(), "never finished"),
        (lambda d: (d / FILE).write_text("{"), "damaged"),
        (lambda d: (d / FILE).write_text('{"format": 1}'), "damaged"),
        (other_format, "format 99"),
        (cut, "missing or cut short"),
        (lambda d: (d / "test_masks.npy").unlink(), "missing or cut short"),
    ],
)
def test_a_damaged_dataset_is_not_taken_for_whole(dataset, damage, told):
    damage(dataset)
    with pytest.raises(InputError, match=told):
        Dataset.open(dataset)


def test_all_empty_masks_are_refused(tmp_path):
    root = write_folder(tmp_path / "data")
    from PIL import Image

    for path in (root / "masks").iterdir():
        Image.new("L", (36, 40)).save(path)
    config = settings.load(None, {"data.format": "folder", "data.root": str(root), "preprocess.size": "32"})
    with pytest.raises(InputError, match="all 8 masks are empty"):
        dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    assert not (tmp_path / "dataset" / FILE).exists()
