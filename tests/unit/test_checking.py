"""All that is wrong with a data set, at once; and cases read ahead."""

import os

import numpy as np
import pytest
from conftest import write_folder, write_nifti
from PIL import Image

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.checking.reading import Check
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
    check.refuse()


@pytest.fixture
def spots(tmp_path):
    """Twelve pictures of bright spots in noise, each with its mask; and how to write one again."""
    root, rng = tmp_path / "spots", np.random.default_rng(0)
    pictures = {}
    for number in range(12):
        mask = np.zeros((96, 80), dtype=bool)
        for y, x in rng.integers(12, 68, (5, 2)):
            mask[y : y + 9, x : x + 7] = True
        haze = np.kron(rng.integers(0, 90, (6, 5)), np.ones((16, 16)))
        pictures[f"c{number:02}"] = (
            (haze + 70 * mask + rng.normal(40, 6, mask.shape)).clip(0, 255).astype(np.uint8),
            mask,
        )
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)

    def write(name, picture=None, mask=None):
        own = pictures[name]
        Image.fromarray(own[0] if picture is None else picture).save(root / "images" / f"{name}.png")
        values = own[1] if mask is None else mask
        Image.fromarray((values * 255).astype(np.uint8) if values.dtype == bool else values).save(
            root / "masks" / f"{name}.png"
        )

    for name in pictures:
        write(name)
    return root, pictures, write


def findings(root, **knobs):
    config = config_of(root, **{"preprocess.size": "96", **knobs})
    check = Check(config, open_reader(config), lambda *_: None)
    for split in SPLITS:
        for _ in check.read(split):
            pass
    check.end()
    return check.findings


def table(root, **sides):
    rows = [f"c{n:02},p{n},{sides.get(f'c{n:02}', ('train', 'train', 'val', 'test')[n % 4])}" for n in range(12)]
    (root / "cases.csv").write_text("\n".join(["case,patient,split", *rows]), encoding="utf-8")


def test_nothing_is_found_where_nothing_is_wrong(spots):
    assert findings(spots[0]) == []


@pytest.mark.parametrize("change", ["same", "brighter", "smaller", "noisy"])
def test_the_same_picture_on_two_sides_of_a_split_is_an_error(spots, change):
    root, pictures, write = spots
    table(root)
    picture = pictures["c00"][0]
    again = {
        "same": picture,
        "brighter": (picture * 0.8 + 20).astype(np.uint8),
        "smaller": np.asarray(Image.fromarray(picture).resize((60, 72), Image.Resampling.BOX)),
        "noisy": (picture + np.random.default_rng(1).normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8),
    }[change]
    mask = np.asarray(Image.fromarray(pictures["c00"][1]).resize(again.shape[::-1]))
    write("c03", again, mask)
    (found,) = findings(root)
    assert (found.severity, found.cases) == ("error", ("c00", "c03"))
    assert ("have the same image" if change == "same" else "look the same") + ", in train and test" in found.told
    assert [one.severity for one in findings(root, **{"check.duplicates": "warn"})] == ["warning"]
    table(root, c03="train")
    (found,) = findings(root)
    assert (found.severity, "count as two patients" in found.told) == ("warning", True)
    text = (root / "cases.csv").read_text(encoding="utf-8").replace("c03,p3,", "c03,p0,")
    (root / "cases.csv").write_text(text, encoding="utf-8")
    assert findings(root) == []


def test_a_shifted_a_swapped_and_an_inverted_mask_are_found(spots):
    root, pictures, write = spots
    write("c02", mask=np.roll(pictures["c02"][1], (9, -7), (0, 1)))
    write("c04", mask=pictures["c05"][1])
    write("c05", mask=pictures["c04"][1])
    write("c07", mask=~pictures["c07"][1])
    found = {one.cases: one for one in findings(root)}
    assert "fits its image 9 pixels up and 7 to the right" in found[("c02",)].told
    assert "that of another case?" in found[("c04",)].told
    assert "that of another case?" in found[("c05",)].told
    assert [one.told for one in findings(root) if one.severity == "error"] == [
        "case c07: mask inverted: its background is what others call foreground; invert it"
    ]
    assert set(found) == {("c02",), ("c04",), ("c05",), ("c07",)}


def test_objects_too_small_for_the_network_s_plane_are_found(spots):
    root, _, write = spots
    for number in range(12):
        mask = np.zeros((96, 80), dtype=bool)
        mask[40:42, 30:32] = True
        write(f"c{number:02}", mask=mask if number else None)
    found = [one for one in findings(root, **{"preprocess.size": "16"}) if "preprocess.size" in one.told]
    assert [(one.severity, len(one.cases)) for one in found] == [("error", 11)]
    assert "11 of 12 cases (c01, c02, c03, ...): foreground vanishes at preprocess.size=16x16" in found[0].told


def test_values_classes_and_empty_masks_over_the_set(spots):
    root, pictures, write = spots
    table(root)
    write("c01", mask=pictures["c01"][1].astype(np.uint8))
    write("c02", mask=np.zeros((96, 80), dtype=bool))
    told = [(one.severity, one.told) for one in findings(root)]
    assert ("warning", "case c01: foreground is 1, but 255 in 10 others: read alike; if not, see data.classes") in told
    assert ("note", "case c02: mask empty: right where there is nothing to find") in [
        (severity, text) for severity, text in told
    ]
    for name, (_, mask) in pictures.items():
        write(name, mask=mask * np.uint8(2 if name in ("c00", "c04") else 1))
    told = [one.told for one in findings(root, **{"data.classes": "spot,scar,scratch"})]
    assert told == [
        "class scar: in no case of val or test; another seed, or a column split, deals it out",
        "class scratch: in no mask; leave it out of data.classes, or look at the masks",
    ]
