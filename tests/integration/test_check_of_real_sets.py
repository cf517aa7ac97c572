"""The check on angiograms, microscopy and fundus photographs with faults planted in copies of them: all are found, and
nothing else is called an error.
"""

import shutil

import numpy as np
import pytest
from PIL import Image

from segpipe.config import settings
from segpipe.data.checking.reading import Check
from segpipe.data.manifest import SPLITS
from segpipe.data.readers import all_cases, open_reader
from segpipe.files.project import PROJECT

SETS = PROJECT.parent / "shared" / "data"
NAMES = ("coronary_train", "isbi_em", pytest.param("retina", marks=pytest.mark.slow))


@pytest.fixture(params=NAMES)
def copy(request, tmp_path):
    source = SETS / request.param
    if not source.is_dir():
        pytest.skip(f"{source} is not here")
    shutil.copytree(source, tmp_path / "data", copy_function=shutil.copyfile)
    for folder in (tmp_path / "data").rglob("*/"):
        folder.chmod(0o755)
    return tmp_path / "data"


def checked(root, **knobs):
    config = settings.load(None, {"data.format": "folder", "data.root": str(root), "preprocess.size": "304", **knobs})
    check = Check(config, open_reader(config), lambda *_: None)
    for split in SPLITS:
        for _ in check.read(split):
            pass
    check.end()
    return check


def mask_of(case):
    return np.asarray(Image.open(case.mask).convert("L"))


def overwrite(case, mask):
    Image.fromarray(mask).save(case.mask)


def of(check, *names):
    return [one for one in check.findings if set(one.cases) == set(names)]


def test_planted_faults_are_found_and_nothing_else_is_an_error(copy):
    before = checked(copy)
    assert [one.told for one in before.findings if one.severity == "error"] == []
    sides = {split: [c for c in before.cases if before.sides[c.patient] == split] for split in SPLITS}
    shifted, swapped, other, inverted, twin = sides["train"][2:7]
    again = sides["test"][0]
    values = mask_of(shifted)
    overwrite(shifted, np.roll(values, (values.shape[0] // 10, values.shape[1] // 10), (0, 1)))
    one = mask_of(swapped)
    overwrite(swapped, np.asarray(Image.fromarray(mask_of(other)).resize(one.shape[::-1], Image.Resampling.NEAREST)))
    overwrite(other, np.asarray(Image.fromarray(one).resize(mask_of(other).shape[::-1], Image.Resampling.NEAREST)))
    values = mask_of(inverted)
    overwrite(inverted, (values.max() - values).astype(np.uint8))
    shutil.copyfile(twin.images[0], again.images[0])
    shutil.copyfile(twin.mask, again.mask)
    found = checked(copy)
    assert "mask seems shifted" in of(found, shifted.name)[0].told
    for case in (swapped, other):
        assert of(found, case.name), case.name
    assert "mask inverted" in of(found, inverted.name)[0].told
    assert "have the same image, in train and test" in of(found, twin.name, again.name)[0].told
    errors = [one for one in found.findings if one.severity == "error"]
    assert {one.cases for one in errors} == {(inverted.name,), tuple(sorted((twin.name, again.name)))}


def test_a_patient_on_two_sides_and_a_class_in_one_split_alone_are_found(copy):
    config = settings.load(None, {"data.format": "folder", "data.root": str(copy)})
    cases = all_cases(open_reader(config))
    (copy / "cases.csv").unlink(missing_ok=True)
    sides = [("train", "train", "val", "test")[n % 4] for n in range(len(cases))]

    def write(twice=None):
        patients = ["p0" if n == twice else f"p{n}" for n in range(len(cases))]
        rows = [f"{c.name},{p},{s}" for c, p, s in zip(cases, patients, sides, strict=True)]
        (copy / "cases.csv").write_text("\n".join(["case,patient,split", *rows]), encoding="utf-8")

    write(twice=3)
    errors = [one.told for one in checked(copy).findings if one.severity == "error"]
    assert errors == [f"patient 'p0' is in both train and test (case '{cases[3].name}')"]
    write()
    values = mask_of(cases[0])
    for case in cases:
        overwrite(case, (mask_of(case) > 0).astype(np.uint8))
    overwrite(cases[0], np.where(values > 0, 2, 0).astype(np.uint8))
    found = checked(copy, **{"data.classes": "vessel,stenosis"})
    assert "class stenosis: in no case of val or test" in " ".join(one.told for one in found.findings)
    assert [one for one in found.findings if one.severity == "error"] == []
