import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import write_volume
from PIL import Image

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import all_cases, open_reader
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.files.project import PROJECT


def reader(kind, root, **knobs):
    return open_reader(settings.load(None, {"data.format": kind, "data.root": str(root), **knobs}))


def load_all(kind, root, **knobs):
    found = reader(kind, root, **knobs)
    return [found.load(case) for case in all_cases(found)]


@pytest.mark.parametrize(
    ("values", "expected"), [((0, 255), (0, 1)), ((0, 1), (0, 1)), ((7, 9), (0, 1)), ((3, 255), (0, 1))]
)
def test_a_binary_mask_may_have_any_two_values(folder, values, expected):
    path = folder / "masks" / "case0.png"
    mask = np.asarray(Image.open(path)) > 0
    Image.fromarray(np.where(mask, values[1], values[0]).astype(np.uint8)).save(path)
    assert set(np.unique(load_all("folder", folder)[0].mask)) == set(expected)


@pytest.mark.parametrize(
    ("background", "foreground", "ignore", "knobs"),
    [
        (0, 255, 128, {}),
        (0, 1, 255, {}),
        (1, 2, 0, {}),
        (0, 1, 255, {"data.classes": "vessel"}),
        (0, 2, 3, {"data.classes": "vessel,stenosis"}),
    ],
)
def test_a_value_to_ignore_is_told_from_the_others(folder, background, foreground, ignore, knobs):
    path = folder / "masks" / "case0.png"
    inside = np.asarray(Image.open(path)) > 0
    mask = np.where(inside, foreground, background).astype(np.uint8)
    mask[:3] = ignore
    for each in (folder / "masks").iterdir():
        Image.fromarray(mask).save(each)
    found = load_all("folder", folder, **{"data.ignore_label": str(ignore)}, **knobs)[0].mask[0]
    assert (found[:3] == IGNORE).all()
    np.testing.assert_array_equal(found[3:], inside[3:] * (foreground if knobs else 1))


def test_a_mask_of_nothing_but_ignored_pixels_is_no_error(folder):
    Image.new("L", (36, 40), 7).save(folder / "masks" / "case0.png")
    volumes = load_all("folder", folder, **{"data.ignore_label": "7"})
    assert (volumes[0].mask == IGNORE).all()
    assert set(np.unique(volumes[1].mask)) == {0, 1}


def test_a_nifti_mask_may_have_a_value_to_ignore(nifti):
    path = nifti / "derivatives/sub-case0/ses-0001/sub-case0_ses-0001_msk.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[0] = 9
    write_volume(path, values, image.affine)
    mask = load_all("nifti", nifti, **{"data.ignore_label": "9"})[0].mask
    assert set(np.unique(mask)) == {0, 1, IGNORE}
    assert (mask == IGNORE).sum() == values[0].size


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"data.classes": "vessel,stenosis", "data.ignore_label": "2"}, r"data\.ignore_label=2"),
        ({"data.classes": "vessel", "data.ignore_label": "0"}, r"data\.ignore_label=0"),
        ({"data.classes": ",".join(f"c{k}" for k in range(255))}, r"data\.classes: 255 names; at most 254"),
    ],
)
def test_classes_that_would_be_ignored_are_refused(folder, knobs, told):
    with pytest.raises(InputError, match=told):
        load_all("folder", folder, **knobs)


def test_ignored_pixels_are_no_foreground_in_the_dataset(folder, tmp_path):
    knobs = {"data.format": "folder", "data.root": str(folder), "data.ignore_label": "9", "preprocess.size": "32"}
    config = settings.load(None, knobs)
    plain = dataset_writer.build(config, open_reader(config), tmp_path / "plain", lambda *_: None)
    for path in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[0] = 9
        Image.fromarray(mask).save(path)
    marked = dataset_writer.build(config, open_reader(config), tmp_path / "marked", lambda *_: None)
    assert [c.voxels for c in marked.cases] == [c.voxels for c in plain.cases]
    assert (Dataset(tmp_path / "marked", marked).array("train_masks") == IGNORE).any()
    for path in (folder / "masks").iterdir():
        Image.new("L", (36, 40), 9).save(path)
    with pytest.raises(InputError, match="all 8 masks are empty"):
        dataset_writer.build(config, open_reader(config), tmp_path / "empty", lambda *_: None)


def test_declared_classes_are_kept_apart(folder):
    path = folder / "masks" / "case0.png"
    mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
    mask[0, 0] = 2
    for each in (folder / "masks").iterdir():
        Image.fromarray(mask).save(each)
    assert set(np.unique(load_all("folder", folder, **{"data.classes": "vessel,stenosis"})[0].mask)) == {0, 1, 2}


def test_colour_images_give_three_channels_where_asked_for(folder):
    volume = load_all("folder", folder, **{"data.channels": "red,green,blue"})[0]
    assert volume.image.shape == (3, 1, 40, 36)


def test_a_table_names_patients_sites_and_splits(folder):
    rows = ["case,patient,site,split", *(f"case{i},p{i // 2},s{i % 2},train" for i in range(8))]
    (folder / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    case = all_cases(reader("folder", folder))[3]
    assert (case.name, case.patient, case.site, case.split) == ("case3", "p1", "s1", "train")


def test_a_volume_has_spacing_in_millimetres_and_lies_foot_to_head(nifti):
    volume = load_all("nifti", nifti)[0]
    assert volume.image.shape == (2, 3, 40, 36)
    assert volume.spacing == (5.0, 2.0, 2.0)


def test_a_channel_on_another_grid_is_resampled(nifti):
    path = nifti / "sub-case0/ses-0001/dwi/sub-case0_ses-0001_adc.nii.gz"
    write_volume(
        path,
        np.full((20, 22, 8), 5, np.float32),
        np.diag([4.0, 4.0, 4.0, 1.0]) + np.array([[0, 0, 0, -30]] * 3 + [[0, 0, 0, 0]]),
    )
    volume = load_all("nifti", nifti)[0]
    assert volume.image.shape == (2, 3, 40, 36)
    assert set(np.unique(volume.image[1].round(3))) <= {0, 5}


def test_the_real_stroke_case_has_the_lesion_its_experts_drew():
    root = PROJECT.parent / "shared" / "data" / "isles22"
    if not root.is_dir():
        pytest.skip("the real ISLES'22 case is not on this machine")
    volume = load_all("nifti", root, **{"data.channels": "dwi,adc,flair"})[0]
    assert volume.image.shape == (3, 73, 112, 112)
    assert volume.mask.sum() == 523
    assert volume.spacing == pytest.approx((2, 2, 2), abs=1e-3)


def drop(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def paint(path, value):
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = value
    Image.fromarray(mask).save(path)


def shift(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 1
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def poison(path):
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)


CASE = "sub-case1/ses-0001"
BROKEN = {
    "folder: image without mask": ("folder", lambda r: drop(r / "masks/case3.png"), "case3.png: no mask"),
    "folder: mask without image": ("folder", lambda r: drop(r / "images/case3.png"), "case3.png: no image"),
    "folder: no masks": ("folder", lambda r: drop(r / "masks"), "no such folder"),
    "folder: sizes differ": ("folder", lambda r: Image.new("L", (9, 9)).save(r / "masks/case3.png"), "9x9 pixels"),
    "folder: truncated image": ("folder", lambda r: cut(r / "images/case3.png"), "case3.png: .*cut short"),
    "folder: a text file": ("folder", lambda r: (r / "images/notes.txt").write_text("x"), "notes.txt: not a picture"),
    "folder: text named png": (
        "folder",
        lambda r: (r / "images/case3.png").write_text("hello"),
        "case3.png: not a PNG",
    ),
    "folder: third value": ("folder", lambda r: paint(r / "masks/case3.png", 9), "case3.png: label values 0, 9, 255"),
    "folder: doubled stem": ("folder", lambda r: Image.new("L", (9, 9)).save(r / "images/case3.bmp"), "same name"),
    "folder: case not listed": ("folder", lambda r: (r / "cases.csv").write_text("case\ncase1"), "is not listed"),
    "folder: table without key": (
        "folder",
        lambda r: (r / "cases.csv").write_text("name\nx"),
        "no column of cases",
    ),
    "folder: table in Latin-1": ("folder", lambda r: (r / "cases.csv").write_bytes(b"case\nM\xfcller"), "not UTF-8"),
    "folder: unknown split": ("folder", lambda r: (r / "cases.csv").write_text("case,split\na,dev"), "split 'dev'"),
    "nifti: no mask": ("nifti", lambda r: drop(r / "derivatives" / CASE), "no file"),
    "nifti: no image": ("nifti", lambda r: drop(r / "sub-case1"), "a mask without its image"),
    "nifti: no channel": ("nifti", lambda r: drop(r / CASE / "dwi/sub-case1_ses-0001_adc.nii.gz"), "_adc"),
    "nifti: affines disagree": (
        "nifti",
        lambda r: shift(r / "derivatives" / CASE / "sub-case1_ses-0001_msk.nii.gz"),
        "affine disagrees",
    ),
    "nifti: truncated": (
        "nifti",
        lambda r: cut(r / CASE / "dwi/sub-case1_ses-0001_dwi.nii.gz"),
        "not a complete NIfTI",
    ),
    "nifti: NaN": ("nifti", lambda r: poison(r / CASE / "dwi/sub-case1_ses-0001_dwi.nii.gz"), "1 NaN"),
    "nifti: nobody listed": ("nifti", lambda r: (r / "participants.tsv").write_text("participant_id\nx"), "not listed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_is_named_in_one_line(name, folder, nifti):
    kind, damage, told = BROKEN[name]
    root = {"folder": folder, "nifti": nifti}[kind]
    damage(root)
    with pytest.raises(InputError, match=told) as caught:
        load_all(kind, root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "told"), [("", "not given"), ("/no/such/place", "no such folder"), (__file__, "a file")]
)
def test_a_wrong_root_is_named(root, told):
    with pytest.raises(InputError, match=told):
        reader("folder", root)


def test_an_empty_root_is_named(tmp_path):
    with pytest.raises(InputError, match="empty folder"):
        reader("nifti", tmp_path)


def test_an_unknown_label_is_named(folder):
    with pytest.raises(InputError, match=r"unknown label value 255; data\.classes declares 1\.\.1"):
        load_all("folder", folder, **{"data.classes": "vessel"})


@pytest.mark.parametrize("kind", ["folder", "nifti"])
def test_a_name_that_is_not_utf_8_is_refused_by_name(kind, request):
    root = request.getfixturevalue(kind)
    for path in sorted(root.rglob("*case0*")):
        if path.is_file():
            path.rename(
                os.fsdecode(os.fsencode(path.parent) + b"/" + os.fsencode(path.name).replace(b"case0", b"c\xff"))
            )
    with pytest.raises(InputError, match=r"c\\xff.*a name that is not UTF-8; rename the file"):
        load_all(kind, root)


def test_a_suffix_tells_the_masks_of_a_folder_that_has_several(folder):
    for path in sorted((folder / "masks").iterdir()):
        Image.new("L", (36, 40)).save(path.with_stem(f"{path.stem}_roi"))
        path.rename(path.with_stem(f"{path.stem}_mask"))
    assert all(volume.mask.any() for volume in load_all("folder", folder, **{"data.mask_suffix": "mask"}))
    with pytest.raises(InputError, match=r"24 faults, the first: .*no mask of the same name"):
        load_all("folder", folder)
    with pytest.raises(InputError, match=r"masks: no file ends with _mak; leave out data\.mask_suffix, or correct it"):
        load_all("folder", folder, **{"data.mask_suffix": "mak"})
