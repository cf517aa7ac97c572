"""All that is wrong with a data set, at once; and cases read ahead."""

import os

import numpy as np
import pytest
from conftest import write_folder, write_nifti
from PIL import Image

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.checking import Check
from segpipe.data.manifest import FILE, SPLITS
from segpipe.data.readers import all_cases, open_reader
from segpipe.errors import FaultsError, InputError


def config_of(root, form="folder", **knobs):
    return settings.load(None, {"data.format": form, "data.root": str(root), "preprocess.size": "32", **knobs})


def build(config, folder):
    return dataset_writer.build(config, open_reader(config), folder, lambda *_: None)


def test_all_faults_of_a_folder_are_told_at_once(tmp_path):
    root = write_folder(tmp_path / "data", cases=12)
    images, masks = root / "images", root / "masks"
    (masks / "case1.png").unlink()
    (images / "case2.png").unlink()
    (images / "case3.png").write_bytes(b"not a picture")
    Image.new("L", (9, 9)).save(masks / "case4.png")
    Image.fromarray(np.arange(40 * 36, dtype=np.uint8).reshape(40, 36)).save(masks / "case5.png")
    (images / "notes.txt").write_text("x", encoding="utf-8")
    rows = [
        "case,patient,split",
        *(f"case{n},p{n},train" for n in range(11)),
        "case12,p12,",
        ",p,train",
        "case0,p0,tset",
    ]
    (root / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        build(config_of(root), tmp_path / "dataset")
    expected = (
        "images/notes.txt: not a picture",
        "images/case1.png: no mask of the same name",
        "masks/case2.png: no image of the same name",
        "cases.csv, line 14: no case",
        "cases.csv, line 15: case 'case0' stands twice",
        "cases.csv: case 'case11' is not listed",
        "cases.csv: case 'case12' has no image",
        "case 'case11' has no split, but others do",
        "images/case3.png: not a PNG",
        "masks/case4.png: 9x9 pixels, its image 40x36",
        "masks/case5.png: label values 0, 1, 2",
    )
    for fault, told in zip(caught.value.faults, expected, strict=True):
        assert told in fault
    assert str(caught.value) == f"11 faults, the first: {caught.value.faults[0]}"
    assert not (tmp_path / "dataset" / FILE).exists()


def test_all_faults_of_volumes_are_told_at_once(tmp_path):
    root = write_nifti(tmp_path / "data", cases=6)
    next(root.glob("sub-case1/**/*_adc.nii.gz")).unlink()
    next(root.glob("derivatives/sub-case2/**/*_msk.nii.gz")).unlink()
    next(root.glob("sub-case3/**/*_dwi.nii.gz")).write_bytes(b"cut")
    with pytest.raises(FaultsError) as caught:
        build(config_of(root, "nifti"), tmp_path / "dataset")
    for fault, told in zip(caught.value.faults, ("no file *_adc", "no file *_msk", "_dwi.nii.gz"), strict=True):
        assert told in fault


def test_a_single_fault_is_told_as_it_is(tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "masks" / "case1.png").unlink()
    with pytest.raises(InputError, match=r"^\S+case1\.png: no mask of the same name"):
        all_cases(open_reader(config_of(root)))


def test_cases_are_read_ahead_in_order_to_the_same_bytes_on_any_number_of_cores(tmp_path, monkeypatch):
    config = config_of(write_folder(tmp_path / "data", cases=20))
    cores, digests = {}, set()
    for number in (1, 4):
        cores = set(range(number))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        seen = []
        manifest = dataset_writer.build(
            config,
            open_reader(config),
            tmp_path / str(number),
            lambda *reported, seen=seen: seen.append(reported),
        )
        assert seen == [(n, 20, case.case) for n, case in enumerate(manifest.cases, start=1)]
        digests.add(manifest.digest)
    assert len(digests) == 1


def test_few_cases_are_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    config = config_of(write_folder(tmp_path / "data", cases=30))
    reader, read = open_reader(config), []

    class Counting:
        root, find = reader.root, reader.find

        def load(self, case):
            read.append(case.name)
            return reader.load(case)

    check, used = Check(config, Counting(), lambda *_: None), 0
    for split in SPLITS:
        for _ in check.read(split):
            used += 1
            assert len(read) - used <= 2
    assert used == 30
    check.end()
