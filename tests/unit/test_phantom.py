import hashlib

import nibabel as nib
import numpy as np
import pytest

from segpipe.data import phantom


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return phantom.simulate(tmp_path_factory.mktemp("base"), 12, 0)


def volume(root, index, suffix):
    (path,) = root.rglob(f"sub-phantom{index:04d}_ses-0001_{suffix}.nii.gz")
    return nib.load(path)


def test_same_seed_same_bytes(tmp_path):
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        root = phantom.simulate(tmp_path / name, 3, 5)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        digests.append([(p.relative_to(root), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert digests[0] == digests[1]
    assert phantom.simulate(tmp_path / "a", 3, 6) != phantom.simulate(tmp_path / "a", 3, 5)


def test_sites_are_as_far_apart_as_asked(tmp_path):
    assert phantom.scanners(1.0) == phantom.SITES
    alike, apart = phantom.scanners(0.0), phantom.scanners(2.0)
    assert len({site[1:] for site in alike}) == 1
    for usual, far in zip(phantom.SITES, apart, strict=True):
        assert far.name == usual.name
        assert far.b - alike[0].b == pytest.approx(2 * (usual.b - alike[0].b))
    extreme = phantom.scanners(3.0)
    assert min(min(*site.voxel, site.noise, site.gain, site.bias) for site in extreme) > 0
    roots = [phantom.simulate(tmp_path, 3, 0, gap) for gap in (0.0, 2.0)]
    zooms = [[volume(root, index, "dwi").header.get_zooms() for index in range(3)] for root in roots]
    assert [len(set(found)) for found in zooms] == [1, 3]


def test_more_patients_keep_the_first_ones(patients, tmp_path):
    few = phantom.simulate(tmp_path, 3, 0)
    one, other = (np.asarray(volume(root, 2, "dwi").dataobj) for root in (few, patients))
    np.testing.assert_array_equal(one, other)


def test_an_existing_folder_is_not_written_again(patients):
    before = {p: p.stat().st_mtime_ns for p in patients.rglob("*")}
    assert phantom.simulate(patients.parent, 12, 0) == patients
    assert {p: p.stat().st_mtime_ns for p in patients.rglob("*")} == before


def test_a_lesion_is_bright_on_dwi_dark_on_adc_and_of_a_stroke_s_size(patients):
    sizes = []
    for index in range(12):
        dwi, adc, mask = (np.asarray(volume(patients, index, s).dataobj) for s in ("dwi", "adc", "msk"))
        brain = dwi > 0
        lesion, healthy = mask > 0, brain & (mask == 0)
        sizes.append(lesion.sum() * np.prod(volume(patients, index, "msk").header.get_zooms()) / 1000)
        if not lesion.any():
            continue
        assert (lesion <= brain).all()
        assert np.median(dwi[lesion]) > 1.15 * np.median(dwi[healthy])
        assert np.median(adc[lesion]) < 0.62 < np.median(adc[healthy])
        world = nib.affines.apply_affine(volume(patients, index, "msk").affine, np.argwhere(lesion))
        assert (world[:, 0] > -15).all() or (world[:, 0] < 15).all()
    found = [size for size in sizes if size]
    assert min(found) > 0.15
    assert max(found) < 61
    assert len(found) < 12 or min(sizes) == 0


def test_some_patients_have_distractors_that_only_dwi_shows(patients):
    shown = 0
    for index in range(12):
        dwi, adc, mask = (np.asarray(volume(patients, index, s).dataobj) for s in ("dwi", "adc", "msk"))
        healthy = (dwi > 0) & (mask == 0)
        bright = healthy & (dwi > 1.7 * np.median(dwi[healthy])) & (adc > 0.9) & (adc < 1.3)
        shown += bright.sum() > 10
    assert shown >= 3


def test_sites_differ_in_resolution_and_intensity(patients):
    zooms = {tuple(np.round(volume(patients, i, "dwi").header.get_zooms(), 2)) for i in range(3)}
    levels = [np.median(d[d > 0]) for d in (np.asarray(volume(patients, i, "dwi").dataobj) for i in range(3))]
    assert len(zooms) == 3
    assert max(levels) > 2 * min(levels)
