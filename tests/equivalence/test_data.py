"""The same pixels by another way are the same pixels."""

import nibabel as nib
import numpy as np
from conftest import write_folder, write_nifti
from PIL import Image

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import all_cases, open_reader


def built(tmp_path, name, root, **knobs):
    config = settings.load(None, {"data.root": str(root), "preprocess.size": "32", **knobs})
    reader = open_reader(config)
    folder = tmp_path / name
    return config, reader, dataset_writer.build(config, reader, folder, lambda *_: None), folder


def test_cached_arrays_are_what_reading_afresh_gives(tmp_path):
    root = write_nifti(tmp_path / "data", cases=6)
    config, reader, manifest, folder = built(tmp_path, "dataset", root, **{"data.format": "nifti"})
    dataset = Dataset(folder, manifest)
    cases = {case.name: case for case in all_cases(reader)}
    for split in ("train", "val"):
        for record in manifest.of(split):
            images, masks = dataset_writer.array_rows(reader.load(cases[record.case]), config.preprocess, split)
            rows = slice(record.start, record.start + record.shape[0])
            np.testing.assert_array_equal(dataset.array(f"{split}_images")[rows], images.astype(np.float16))
            np.testing.assert_array_equal(dataset.array(f"{split}_masks")[rows], masks)
    assert manifest.of("test")
    for record in manifest.of("test"):
        volume = reader.load(cases[record.case])
        image, mask = dataset.native(record)
        np.testing.assert_array_equal(image, volume.image)
        np.testing.assert_array_equal(mask, volume.mask)


def test_building_twice_gives_the_same_bytes(tmp_path):
    root = write_folder(tmp_path / "data")
    _, _, one, first = built(tmp_path, "one", root, **{"data.format": "folder"})
    _, _, two, second = built(tmp_path, "two", root, **{"data.format": "folder"})
    assert one.digest == two.digest
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_the_same_pixels_as_pictures_and_as_nifti_give_the_same_volume(tmp_path):
    pictures, volumes = write_folder(tmp_path / "pictures", cases=3), tmp_path / "volumes"
    for path in sorted((pictures / "images").iterdir()):
        name = f"sub-{path.stem}"
        for source, target in (
            (path, volumes / name / "dwi" / f"{name}_dwi.nii.gz"),
            (pictures / "masks" / path.name, volumes / "derivatives" / name / f"{name}_msk.nii.gz"),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(source)).T[..., None]
            nib.save(nib.Nifti1Image(pixels, np.eye(4)), target)
    flat = open_reader(settings.load(None, {"data.format": "folder", "data.root": str(pictures)}))
    knobs = {"data.format": "nifti", "data.root": str(volumes), "data.channels": "dwi"}
    stacked = open_reader(settings.load(None, knobs))
    for one, other in zip(all_cases(flat), all_cases(stacked), strict=True):
        a, b = flat.load(one), stacked.load(other)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)


def test_a_test_set_keeps_its_identity_whatever_the_preprocessing(tmp_path):
    root = write_folder(tmp_path / "data")
    _, _, one, _ = built(tmp_path, "one", root, **{"data.format": "folder"})
    _, _, two, _ = built(tmp_path, "two", root, **{"data.format": "folder", "preprocess.normalise": "minmax"})
    assert one.test_digest == two.test_digest
    assert one.digest != two.digest
