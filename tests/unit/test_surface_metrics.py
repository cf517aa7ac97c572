import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric import binary as medpy
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion
from skimage.morphology import skeletonize

from segpipe.metrics import centreline, surface

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own, of itself
spacings = st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.3, 2.0, 1.1)])
masks = hnp.arrays(np.bool_, (6, 12, 10), elements=st.booleans(), fill=st.just(False))


def ball(shape, centre, radius):
    offsets = [x - c for x, c in zip(np.indices(shape), centre, strict=True)]
    return sum(x**2 for x in offsets) <= radius**2


def marked(shape, *boxes):
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


def ours(prediction, reference, spacing, tolerance=2.0):
    found = surface.distances(prediction, reference, spacing)
    return {"hd95": surface.hd95(found), "assd": surface.assd(found), "nsd": surface.nsd(found, tolerance)}


def oracles(prediction, reference, spacing, tolerance=2.0):
    """HD95 and NSD of MONAI; ASSD of MedPy, and of MONAI, which agree."""
    tensors = [torch.from_numpy(m)[None, None] for m in (prediction, reference)]
    how = {"include_background": True, "spacing": spacing}
    assd = medpy.assd(prediction, reference, voxelspacing=spacing)
    assert compute_average_surface_distance(*tensors, symmetric=True, **how).item() == pytest.approx(assd, abs=1e-4)
    return {
        "hd95": compute_hausdorff_distance(*tensors, percentile=95, **how).item(),
        "assd": assd,
        "nsd": compute_surface_dice(*tensors, class_thresholds=[tolerance], **how).item(),
    }


s = np.s_
GEOMETRY = {
    "a shifted square": (marked((40, 40), s[5:25, 5:25]), marked((40, 40), s[5:25, 9:29]), (1.0, 1.0)),
    "a square in a square": (marked((40, 40), s[5:35, 5:35]), marked((40, 40), s[15:25, 15:25]), (0.4, 0.4)),
    "two pixels": (marked((9, 9), s[1, 1]), marked((9, 9), s[4, 5]), (1.0, 1.0)),
    "the same pixel": (marked((9, 9), s[4, 4]), marked((9, 9), s[4, 4]), (1.0, 1.0)),
    "pixels in corners": (marked((30, 20), s[0, 0]), marked((30, 20), s[29, 19]), (1.0, 1.0)),
    "squares at the border": (marked((20, 20), s[:8, :8]), marked((20, 20), s[:10, :6]), (1.0, 1.0)),
    "everything and a part": (np.ones((12, 12), bool), marked((12, 12), s[3:9, :]), (1.0, 1.0)),
    "spheres": (ball((30, 30, 30), (14, 14, 14), 9), ball((30, 30, 30), (15, 16, 14), 10), (1.0, 1.0, 1.0)),
    "thick slices": (ball((12, 30, 30), (5, 14, 14), 5), ball((12, 30, 30), (6, 16, 14), 5), (5.0, 0.9, 0.9)),
    "voxels far apart": (marked((5, 40, 40), s[0, 0, 0]), marked((5, 40, 40), s[4, 39, 39]), (5.0, 0.9, 0.9)),
    "flat boxes": (marked((8, 30, 30), s[:1, 2:20, 2:20]), marked((8, 30, 30), s[6:, 5:25, 5:25]), (0.5, 3.0, 2.0)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_agrees_with_monai_and_medpy_on_shapes(name):
    case = GEOMETRY[name]
    assert ours(*case) == pytest.approx(oracles(*case), abs=1e-4)


@given(masks, masks, spacings)
def test_agrees_with_monai_and_medpy_on_any_masks(prediction, reference, spacing):
    prediction[2, 3, 4] = reference[3, 9, 9] = True
    case = prediction, reference, spacing
    assert ours(*case) == pytest.approx(oracles(*case), abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_monai_and_medpy_on_noise_from_sparse_to_dense(seed):
    rng = np.random.default_rng([seed, 0x5F])
    case = *(rng.random((2, 10, 24, 24)) < 10.0 ** (-seed)), (2.0, 0.6, 0.6)
    assert ours(*case) == pytest.approx(oracles(*case), abs=1e-4)


@given(masks)
def test_a_surface_is_the_mask_without_its_erosion(mask):
    np.testing.assert_array_equal(surface.surface(mask), mask ^ binary_erosion(mask))


@given(masks, masks, spacings)
def test_surface_metrics_are_symmetric(one, other, spacing):
    assert ours(one, other, spacing) == pytest.approx(ours(other, one, spacing), rel=1e-12, nan_ok=True)


def test_a_shifted_square_has_the_distances_geometry_says():
    reference, prediction = marked((30, 30), s[5:15, 5:15]), marked((30, 30), s[5:15, 8:18])
    found = surface.distances(prediction, reference, (1.0, 0.5))
    assert surface.hd95(found) == pytest.approx(1.5)
    assert surface.nsd(found, 1.5) == 1.0
    assert surface.nsd(found, 1.4) == pytest.approx(np.mean(found.predicted <= 1.4))


def test_a_voxel_exactly_at_the_tolerance_counts_whatever_the_header_rounded():
    spacing = float(np.float32(0.4))
    assert 5 * spacing > 2.0
    found = surface.distances(marked((9, 9), s[4, 1]), marked((9, 9), s[4, 6]), (spacing, spacing))
    assert surface.nsd(found, 2.0) == 1.0
    assert surface.nsd(found, 1.99) == 0.0


@given(masks, st.integers(1, 3), st.integers(1, 3))
def test_distances_know_nothing_of_empty_space_around(mask, before, after):
    mask[2, 3, 4] = True
    pair = [np.pad(m, 1) for m in (mask, np.roll(mask, 1, axis=1))]
    wide = [np.pad(m, ((0, 0), (before, after), (after, before))) for m in pair]
    assert ours(*wide, (2.0, 1.0, 1.0)) == pytest.approx(ours(*pair, (2.0, 1.0, 1.0)), rel=1e-12)


def vessel(shape, seed):
    """A branching walk, widened to three pixels."""
    rng, mask = np.random.default_rng([seed, 0xC1]), np.zeros(shape, bool)
    for start in rng.integers(5, shape[0] - 5, 6):
        path = np.clip(start + np.cumsum(rng.integers(-1, 2, shape[1])), 2, shape[0] - 3)
        for width in (-1, 0, 1):
            mask[path + width, np.arange(shape[1])] = True
    return mask


def test_cldice_is_the_formula_of_its_authors():
    prediction, reference = vessel((60, 80), 0), vessel((60, 80), 0) & (np.indices((60, 80))[1] < 60)
    thin_p, thin_r = skeletonize(prediction), skeletonize(reference)
    precision, recall = (thin_p & reference).sum() / thin_p.sum(), (thin_r & prediction).sum() / thin_r.sum()
    expected = 2 * precision * recall / (precision + recall)
    assert 0.5 < expected < 0.95
    assert centreline.cldice(prediction, reference) == pytest.approx(expected, abs=1e-12)
    assert centreline.cldice(reference, prediction) == pytest.approx(expected, abs=1e-12)


def test_cldice_forgives_width_and_not_a_gap():
    line, wide, broken = (marked((40, 40), box) for box in (s[20, 5:35], s[19:22, 5:35], s[20, 5:20]))
    assert centreline.cldice(wide, line) > 0.98 > 2 * (wide & line).sum() / (wide.sum() + line.sum())
    assert centreline.cldice(broken, line) == pytest.approx(2 * 0.5 / 1.5)
    assert centreline.cldice(marked((40, 40), s[2, 2:9]), line) == 0.0


def test_a_part_that_thinning_wears_away_still_counts():
    cube, tube = marked((12, 20, 20), s[2:4, 2:4, 2:4]), marked((12, 20, 20), s[8, 10, 3:18])
    assert not skeletonize(cube).any()
    assert centreline.skeleton(cube | tube)[cube].all()
    assert centreline.cldice(cube, cube) == 1.0
    assert centreline.cldice(cube | tube, tube) < 1.0


@given(masks)
def test_a_skeleton_lies_inside_and_reaches_every_part(mask):
    from scipy.ndimage import label

    thin = centreline.skeleton(mask)
    assert not (thin & ~mask).any()
    parts, number = label(mask, np.ones((3, 3, 3)))
    assert set(np.unique(parts[thin])) == set(range(1, number + 1))
