"""Windows drawn from cases of any size."""

import numpy as np
import pytest
import torch
from conftest import allocating, fit, training_set, write_folder
from double_precision import AGREE, DoubleBatches
from hypothesis import given
from hypothesis import strategies as st

from segpipe.config import settings
from segpipe.config.sections import AugmentConfig, TrainConfig
from segpipe.data import augment, dataset_writer, patches
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError

PLAIN = AugmentConfig(enabled=False)
STILL = AugmentConfig(rotation_p=0, scale_p=0)
WIDE = AugmentConfig(
    flip_horizontal=0.5, flip_vertical=0.5, rotation_p=1, rotation=180, scale_p=1, scale=0.4, shear_p=1, shear=20,
    elastic_p=1, elastic=0.05, brightness_p=0, contrast_p=0, gamma_p=0,
)  # fmt: skip
sides = st.integers(1, 50)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve pictures of 40 x 36 and windows of 16 x 24."""
    root = tmp_path_factory.mktemp("patches")
    config, manifest, folder = training_set(root, **{"preprocess.fit": "patch", "preprocess.size": "16,24"})
    return config, Dataset(folder, manifest)


def samples(made, split="train", **knobs):
    train = TrainConfig(**{"batch_size": 4, **knobs})
    return patches.Patches(made[1].where(split=split), train, training=split == "train")


def batches(made, split="train", kind=Batches, **knobs):
    train = TrainConfig(**{"batch_size": 4, **knobs})
    return kind(made[1].where(split=split), train, torch.device("cpu"), training=split == "train")


# --- tiles: what is validated


@given(sides, st.integers(1, 20))
def test_tiles_see_every_pixel_once_and_the_last_ends_at_the_border(length, side):
    seen = np.zeros(length, dtype=int)
    for start, inside in patches._sides(length, side):
        assert -start <= max(side - length, 0)
        assert start + side <= max(length, side)
        seen[start + inside.start : start + inside.stop] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("size", ["16,24", "64", "24,64", "40,36"])
def test_validation_counts_every_pixel_of_a_case_once(tmp_path, size):
    _, manifest, folder = training_set(tmp_path, **{"preprocess.fit": "patch", "preprocess.size": size})
    dataset = Dataset(folder, manifest)
    val = batches((None, dataset), "val")
    given = list(val.in_order())
    labels, cases = torch.cat([b.labels for b in given]), torch.cat([b.cases for b in given])
    assert labels.shape[1:] == manifest.preprocess.size
    for number, case in enumerate(val.cases):
        _, whole = dataset.stored(case)
        mine = labels[cases == number]
        assert (mine != IGNORE).sum() == whole.size
        assert (mine == 1).sum() == (whole == 1).sum()


def test_examples_are_the_tiles_with_the_most_foreground(made):
    val = batches(made, "val")
    batch, cases = val.examples(2)
    assert len(batch.labels) == len(cases) == 2
    areas = (torch.cat([b.labels for b in val.in_order()]) == 1).sum(dim=(1, 2))
    of = torch.cat([b.cases for b in val.in_order()])
    assert [int((plane == 1).sum()) for plane in batch.labels] == [int(areas[of == k].max()) for k in (0, 1)]


# --- windows: what is trained on


@given(st.integers(-200, 200), sides, st.integers(1, 30))
def test_what_lies_outside_is_mirrored_as_numpy_does(start, side, length):
    line = np.arange(length)
    padded = np.pad(line, 300, mode="symmetric")
    np.testing.assert_array_equal(line[patches._mirror(start, side, length)], padded[300 + start :][:side])


def test_a_window_is_what_lies_at_its_place(made):
    train = samples(made, foreground=0.0)
    drawn = train.draw(np.arange(20), 3, 4, PLAIN)
    for n in range(20):
        case, plane, top, left = train.place(n, 3, 4)
        image, labels = made[1].stored(made[1].where(split="train").cases[case])
        assert drawn.cases[n] == case
        np.testing.assert_array_equal(drawn.images[n], image[:, plane, top : top + 16, left : left + 24])
        np.testing.assert_array_equal(drawn.labels[n], labels[plane, top : top + 16, left : left + 24])


def test_a_place_follows_from_seed_epoch_and_sample_alone(made):
    few, many = samples(made, patches=3), samples(made, patches=3, batch_size=1)
    assert [few.place(n, 1, 2) for n in range(len(few))] == [many.place(n, 1, 2) for n in range(len(many))]
    for seed, epoch in ((1, 3), (2, 2)):
        assert [few.place(n, 1, 2) for n in range(9)] != [few.place(n, seed, epoch) for n in range(9)]


def test_windows_lie_anywhere_and_nowhere_more_often(made):
    train = samples(made, patches=400, foreground=0.0)
    places = [train.place(n, 0, 0) for n in range(400)]
    tops, lefts = (np.bincount([getattr(p, side) for p in places]) for side in ("top", "left"))
    assert len(tops) == 40 - 16 + 1
    assert len(lefts) == 36 - 24 + 1
    assert tops.min() > 0.3 * 400 / 25
    assert lefts.min() > 0.3 * 400 / 13


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_windows_is_centred_on_foreground(made, share):
    train = samples(made, patches=200, foreground=share)
    drawn = train.draw(np.arange(len(train)), 0, 0, PLAIN)
    anywhere = samples(made, patches=200, foreground=0.0).draw(np.arange(len(train)), 0, 0, PLAIN)
    holds, chance = ((d.labels == 1).any(axis=(1, 2)).mean() for d in (drawn, anywhere))
    assert holds == pytest.approx(share + (1 - share) * chance, abs=0.04)


def test_each_class_of_a_case_is_drawn_as_often_however_small(made, monkeypatch):
    train = samples(made, patches=300, foreground=1.0)
    labels = np.zeros((2, 60, 60), dtype=np.uint8)
    labels[0, 20:40, 20:40], labels[1, 30, 30], labels[0, 0, 0] = 1, 2, IGNORE
    monkeypatch.setattr(train, "labels", [labels])
    monkeypatch.setattr(train, "positions", [patches._positions(labels, 3)])
    planes = [train.place(n, 0, 0).plane for n in range(300)]
    assert 0.42 < np.mean(planes) < 0.58
    assert {train.place(n, 0, 0)[2:] for n in range(300) if planes[n]} == {(30 - 8, 30 - 12)}


def test_a_case_without_foreground_is_seen_anywhere(made, monkeypatch):
    train = samples(made, foreground=1.0, patches=20)
    monkeypatch.setattr(train, "positions", [[] for _ in train.positions])
    assert len({train.place(n, 0, 0) for n in range(20)}) > 10


def test_an_epoch_has_so_many_windows_a_case_or_as_many_as_cover_it(made):
    cases = len(made[1].where(split="train").cases)
    assert len(samples(made)) == cases * 3 * 2
    assert len(samples(made, patches=5)) == cases * 5
    assert np.bincount(samples(made, patches=5).cases).tolist() == [5] * cases


def test_positions_remember_a_large_mask_in_little_memory():
    labels = np.ones((1, 2000, 2000), dtype=np.uint8)
    (found,) = patches._positions(labels, 1)
    assert len(found) == patches.POSITIONS
    assert (found[0], found[-1]) == (0, labels.size - 1)
    with allocating(64 * 2**20):
        patches._positions(labels, 1)


def test_a_split_without_foreground_is_refused(tmp_path):
    config, manifest, folder = training_set(tmp_path, **{"preprocess.fit": "patch"})
    for split in ("train", "val"):
        masks = np.load(folder / f"{split}_masks.npy")
        np.save(folder / f"{split}_masks.npy", np.zeros_like(masks))
        with pytest.raises(InputError, match=f"{split} split has no foreground"):
            batches((config, Dataset(folder, manifest)), split)


# --- windows that are changed


@pytest.mark.parametrize("size", [(16, 24), (31, 20)])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"elastic_p": 0, "shear_p": 0},
        {"elastic_p": 0, "scale_p": 0, "rotation": 20},
        {"rotation_p": 0},
        {"stretch_p": 1.0, "stretch": 0.3},
    ],
    ids=["everything", "turned and sized", "turned a little", "not turned", "stretched"],
)
def test_all_that_a_change_can_bring_in_is_within_reach(size, knobs):
    config = WIDE.model_copy(update=knobs)
    height, width = augment.reach(config, size)
    assert (height - size[0]) % 2 == (width - size[1]) % 2 == 0
    generator = torch.Generator().manual_seed(1)
    larger = torch.randn(60, 2, height + 40, width + 40, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60, height + 40, width + 40), dtype=torch.uint8, generator=generator)
    values = augment.draw(config, 0, 0, range(60))
    expected = augment.apply(larger, labels, values, size)
    found = augment.apply(larger[..., 20:-20, 20:-20], labels[:, 20:-20, 20:-20], values, size)
    torch.testing.assert_close(found[0], expected[0], **AGREE)
    assert (found[1] != expected[1]).float().mean() < 1e-3  # nearest neighbour, at a tie


def test_the_reach_is_no_larger_than_turning_and_sizing_need():
    config = AugmentConfig(rotation=180, scale=0.2)
    assert augment.reach(config, (100, 100)) == (100 + 2 * 40, 100 + 2 * 40)  # the diagonal over 0.8, and a pixel
    assert augment.reach(AugmentConfig(rotation_p=0, scale=0.2), (100, 80)) == (100 + 2 * 14, 80 + 2 * 11)
    assert augment.reach(STILL, (100, 80)) == augment.reach(PLAIN, (100, 80)) == (100, 80)


def test_a_window_that_is_not_moved_is_cut_to_the_pixel(made):
    still = AugmentConfig(flip_horizontal=0, rotation_p=0, scale_p=0, brightness_p=0, contrast_p=0, gamma_p=0)
    beside = still.model_copy(update={"rotation_p": 0.5, "rotation": 90.0})
    plain, same, some = (
        torch.cat([b.images for b in batches(made).shuffled(0, 0, how)]) for how in (PLAIN, still, beside)
    )
    assert torch.equal(plain, same)
    unmoved = (plain == some).flatten(1).all(dim=1)
    assert 0.3 < unmoved.float().mean() < 0.7


def test_a_sample_is_the_same_in_any_batch_and_wherever_an_epoch_is_entered(made):
    one, other = (batches(made, kind=DoubleBatches, patches=4, batch_size=size) for size in (3, 8))
    whole, parts = (torch.cat([b.images for b in made.shuffled(5, 1, WIDE)]) for made in (other, one))
    torch.testing.assert_close(parts, whole, **AGREE)
    entered = list(one.shuffled(5, 1, WIDE, start=2))
    assert torch.equal(torch.cat([b.images for b in entered]), parts[6:])


def test_a_turned_window_shows_what_lies_around_it_not_its_border(made, monkeypatch):
    train = batches(made, patches=30, foreground=0.0)
    ramp = np.arange(400, dtype=np.float16)[:, None].repeat(400, axis=1)[None, None]  # each row its number
    monkeypatch.setattr(train.samples, "images", [ramp] * len(train.cases))
    monkeypatch.setattr(train.samples, "labels", [np.zeros((1, 400, 400), np.uint8)] * len(train.cases))
    turned = AugmentConfig(rotation_p=1, rotation=180, scale_p=0, brightness_p=0, contrast_p=0, gamma_p=0)
    for batch in train.shuffled(0, 0, turned):
        inner = batch.images.flatten(1).amin(dim=1).gt(20) & batch.images.flatten(1).amax(dim=1).lt(380)
        slopes = [batch.images.diff(dim=axis).flatten(1) for axis in (-2, -1)]
        assert all((slope.amax(dim=1) - slope.amin(dim=1))[inner].lt(1e-3).all() for slope in slopes)
        length = torch.stack([slope.mean(dim=1) for slope in slopes]).norm(dim=0)
        torch.testing.assert_close(length[inner], torch.ones(int(inner.sum())), atol=1e-3, rtol=0)


def test_what_reaches_too_far_is_refused_with_the_knobs(made):
    with pytest.raises(InputError, match=r"augment.scale, shear and elastic reach \d+ x \d+ pixels .* lower them"):
        next(batches(made).shuffled(0, 0, AugmentConfig(scale=0.95)))


# --- training on them


def test_training_on_windows_learns_and_repeats_itself(made):
    dataset = (made[0], made[1].manifest, made[1].folder)
    result, again = (fit(dataset, train={"epochs": 8, "lr": 1e-2, "patches": 4}) for _ in "ab")
    assert result.best.val_dice > 0.5
    assert np.nanmean(result.val_cases) == pytest.approx(result.best.val_dice)
    assert all(torch.equal(value, again.weights[name]) for name, value in result.weights.items())


def test_cases_of_several_sizes_lie_in_one_data_set(tmp_path):
    root = write_folder(tmp_path / "data", cases=8)
    write_folder(root, cases=2, height=90, width=24)
    knobs = {"data.format": "folder", "data.root": str(root), "preprocess.fit": "patch", "preprocess.size": "32"}
    tiny = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "train.batch_size": "4"}
    config = settings.load(None, knobs | tiny)
    manifest = dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    dataset = Dataset.open(tmp_path / "dataset")
    assert {case.shape for case in manifest.cases} == {(1, 40, 36), (1, 90, 24)}
    for case in manifest.cases:
        image, labels = dataset.stored(case)
        assert image.shape[1:] == labels.shape == case.shape
        assert int((labels == 1).sum()) == sum(case.voxels.values())
    assert fit((config, manifest, dataset.folder), train={"epochs": 1}).history
