import math

import numpy as np
import pytest
import torch
from double_precision import AGREE

from segpipe.config.sections import AugmentConfig
from segpipe.data import augment
from segpipe.data.volume import IGNORE

AMOUNTS = {**augment.LEAST, **augment.LATER}
ALWAYS = {"flip_horizontal": 1.0, "flip_vertical": 1.0, **{f"{name}_p": 1.0 for name in AMOUNTS}}
NEVER = dict.fromkeys(ALWAYS, 0.0)
EVERYTHING = {**ALWAYS, "flip_horizontal": 0.5, "flip_vertical": 0.5, **{f"{name}_p": 0.6 for name in AMOUNTS}}


def exactly(n=1, **amounts):
    """Values that change nothing but what is named."""
    values = augment.draw(AugmentConfig(**NEVER), 0, 0, range(n))
    return values | {name: torch.full((n,), float(amount)) for name, amount in amounts.items()}


def picture(n, *shape):
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 3, (n, *shape[1:]), dtype=torch.uint8, generator=generator)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64), labels


def disc(height=96, width=96, radius=12, row=50.0, column=40.0):
    """A bright disc 1,1,H,W on a dark ground, and its mask."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return inside[None, None].double() * 10 - 5, inside[None].to(torch.uint8)


def centre(mask):
    """Row and column of a mask's centre."""
    return torch.nonzero(mask[0]).float().mean(dim=0)


# --- what is drawn


def test_draws_depend_on_seed_epoch_and_sample_alone():
    config = AugmentConfig(**EVERYTHING)
    together, alone = augment.draw(config, 1, 2, [5, 9, 11]), augment.draw(config, 1, 2, [9])
    for name in together:
        assert torch.equal(together[name][1], alone[name][0]), name
    for other in (augment.draw(config, 1, 3, [9]), augment.draw(config, 2, 2, [9]), augment.draw(config, 1, 2, [10])):
        assert not torch.equal(other["keys"], alone["keys"])
        assert not torch.equal(other["box"], alone["box"])


@pytest.mark.parametrize("shape", [(1, 33, 47), (2, 64, 64)])
def test_a_sample_comes_out_the_same_in_any_batch_and_order(shape):
    config = AugmentConfig(**EVERYTHING)
    images, labels = picture(8, *shape)
    whole = augment.apply(images, labels, augment.draw(config, 3, 4, range(8)))
    order = [6, 2, 5]
    part = augment.apply(images[order], labels[order], augment.draw(config, 3, 4, order))
    torch.testing.assert_close(part[0], whole[0][order], **AGREE)
    assert torch.equal(part[1], whole[1][order])


def test_the_same_draw_gives_the_same_bytes_and_leaves_its_input_alone():
    images, labels = picture(6, 2, 48, 40)
    before = images.clone(), labels.clone()
    first, again = (augment.apply(images, labels, augment.draw(AugmentConfig(**ALWAYS), 0, 1, range(6))) for _ in "ab")
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_a_cpu_gives():
    images, labels = picture(16, 2, 96, 96)
    images = images.float()
    values = augment.draw(AugmentConfig(**EVERYTHING), 0, 0, range(16))
    here = augment.apply(images, labels, values)
    there = augment.apply(images.cuda(), labels.cuda(), values)
    torch.testing.assert_close(there[0].cpu(), here[0], rtol=1e-3, atol=1e-3)
    assert (there[1].cpu() == here[1]).float().mean() > 0.999


@pytest.mark.parametrize("name", ALWAYS)
def test_a_probability_is_how_often(name):
    drawn = name.removesuffix("_p")
    for probability, low, high in ((0.0, 0, 0), (0.3, 0.26, 0.34), (1.0, 1, 1)):
        values = augment.draw(AugmentConfig(**{**NEVER, name: probability}), 0, 0, range(2000))
        assert low <= (values[drawn] != 0).float().mean() <= high
        others = [values[n].any() for n in (*augment.FLIPS, *AMOUNTS) if n != drawn]
        assert not any(others)


@pytest.mark.parametrize("name", AMOUNTS)
def test_amounts_spread_up_to_the_magnitude(name):
    config = AugmentConfig(**ALWAYS)
    largest, amounts = getattr(config, name), augment.draw(config, 0, 0, range(2000))[name].numpy()
    least = AMOUNTS[name] * largest
    assert amounts.max() <= np.float32(largest)
    assert amounts.max() > 0.99 * largest
    assert least - 1e-6 <= amounts.min() <= least + 0.01 * largest
    assert amounts.mean() == pytest.approx((least + largest) / 2, abs=0.05 * largest)


# --- what changes nothing


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 24, 40)])
def test_values_of_nothing_change_nothing_at_all(shape):
    images, labels = picture(4, *shape)
    for values in (exactly(4), augment.draw(AugmentConfig(**NEVER), 0, 0, range(4))):
        same_images, same_labels = augment.apply(images, labels, values)
        assert torch.equal(same_images, images)
        assert torch.equal(same_labels, labels)


@pytest.mark.parametrize("name", AMOUNTS)
def test_a_sample_that_drew_nothing_is_untouched_beside_one_that_did(name):
    images, labels = picture(2, 2, 32, 32)
    amount = 0.2 if name in ("elastic", "dropout", "scale") else 0.5
    values = exactly(2) | {name: torch.tensor([0.0, amount])}
    changed_images, changed_labels = augment.apply(images, labels, values)
    assert torch.equal(changed_images[0], images[0])
    assert torch.equal(changed_labels[0], labels[0])
    assert not torch.equal(changed_images[1], images[1])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("ground", [0.0, 1e3])
def test_the_extremes_stay_finite(largest, ground):
    config = AugmentConfig(
        **ALWAYS, rotation=180, scale=0.99, shear=60, elastic=0.2, brightness=5, contrast=0.99, gamma=0.99, noise=5,
        blur=10, dropout=1, stretch=0.99, colour=5, coarse=0.99, gamma_inverted=1,
    )  # fmt: skip
    for images in (torch.randn(8, 2, 16, 20) * 1e3 + ground, torch.full((8, 2, 16, 20), ground)):
        values = augment.draw(config, 0, 0, range(8))
        if not largest:
            values = {
                name: value.abs() * 1e-30 if value.dtype == torch.float32 else value for name, value in values.items()
            }
        changed, labels = augment.apply(images, torch.ones(8, 16, 20, dtype=torch.uint8), values)
        assert torch.isfinite(changed).all()
        assert set(labels.unique().tolist()) <= {0, 1}


# --- geometry


@pytest.mark.parametrize("warped", [False, True], ids=["by index", "in the resampling"])
@pytest.mark.parametrize(("name", "axis"), [("flip_horizontal", -1), ("flip_vertical", -2)])
def test_a_flip_mirrors_image_and_mask_alike(name, axis, warped):
    images, labels = picture(1, 2, 16, 20)
    values = exactly(**{name: 1}, rotation=1e-6 if warped else 0)
    flipped, mirrored = augment.apply(images, labels, values)
    torch.testing.assert_close(flipped, images.flip(axis), atol=1e-4 if warped else 0, rtol=0)
    assert torch.equal(mirrored, labels.flip(axis))


def test_a_positive_rotation_is_counter_clockwise_as_displayed():
    image, mask = disc(64, 96, radius=4, row=31.5, column=67.5)
    for degrees, row, column in (
        (90, 11.5, 47.5),
        (-90, 51.5, 47.5),
        (30, 31.5 - 10, 47.5 + 20 * math.cos(math.pi / 6)),
    ):
        _, turned = augment.apply(image, mask, exactly(rotation=degrees))
        assert centre(turned).tolist() == pytest.approx([row, column], abs=0.6)
        assert turned.sum() == pytest.approx(mask.sum().item(), rel=0.1)


def test_a_shear_moves_rows_sideways_in_proportion_to_their_height():
    image, mask = disc(96, 64, radius=4, row=67.5, column=31.5)
    for degrees in (20, -20):
        _, moved = augment.apply(image, mask, exactly(shear=degrees))
        row, column = centre(moved).tolist()
        assert row == pytest.approx(67.5, abs=0.5)
        assert column == pytest.approx(31.5 + 20 * math.tan(math.radians(degrees)), abs=0.6)


def test_a_scale_enlarges():
    image, mask = disc(radius=12, row=47.5, column=47.5)
    for scale in (0.25, -0.25):
        _, sized = augment.apply(image, mask, exactly(scale=scale))
        assert sized.sum() == pytest.approx(mask.sum().item() * (1 + scale) ** 2, rel=0.05)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 160)])
def test_an_elastic_displacement_is_as_long_as_asked_bounded_and_smooth(height, width):
    n, elastic, shorter = 200, 0.03, min(height, width)
    values = augment.draw(AugmentConfig(**{**NEVER, "elastic_p": 1, "elastic": elastic}), 0, 0, range(n))
    field = augment._displacement(values, torch.zeros(n, 1, height, width), (height, width))
    pixels = field * torch.tensor([width / 2, height / 2])
    length = pixels.norm(dim=-1)
    assert length.square().mean().sqrt() == pytest.approx(elastic * shorter, rel=0.05)
    assert length.max() < 3.62 * elastic * shorter
    for axis in (1, 2):
        assert pixels.diff(dim=axis).norm(dim=-1).max() < 0.6
        assert pixels.diff(n=2, dim=axis).norm(dim=-1).max() < 5 / shorter


def test_what_comes_from_outside_is_the_border_and_background():
    images, labels = torch.full((1, 1, 32, 32), 3.0), torch.ones(1, 32, 32, dtype=torch.uint8)
    changed, marks = augment.apply(images, labels, exactly(scale=-0.5))
    torch.testing.assert_close(changed, images)
    assert marks[0, 8:24, 8:24].all()
    assert marks.sum() == 16 * 16


def test_ignored_pixels_move_like_others():
    _, mask = disc()
    values = augment.draw(AugmentConfig(**{**NEVER, "rotation_p": 1, "elastic_p": 1}), 0, 0, [0])
    moved, ignored = (augment.apply(torch.zeros(1, 1, 96, 96), mask * np.uint8(v), values)[1] for v in (1, IGNORE))
    assert torch.equal(moved * np.uint8(IGNORE), ignored)


def test_image_and_mask_move_together():
    config = AugmentConfig(
        flip_horizontal=0.5, flip_vertical=0.5, rotation_p=1, rotation=180, scale_p=1, scale=0.3, shear_p=1,
        elastic_p=1, elastic=0.04, brightness_p=0, contrast_p=0, gamma_p=0,
    )  # fmt: skip
    parts = [disc(row=40.0 + k % 5, column=38.0 + k % 7) for k in range(40)]
    images, labels = (torch.cat([part[k] for part in parts]) for k in (0, 1))
    changed, marks = augment.apply(images, labels, augment.draw(config, 0, 0, range(40)))
    bright = changed[:, 0] > 0
    both = (bright & (marks == 1)).sum(dim=(1, 2))
    dice = 2 * both / (bright.sum(dim=(1, 2)) + marks.sum(dim=(1, 2)))
    assert dice.min() > 0.95
    assert all(not torch.equal(a, b) for a, b in zip(labels, marks, strict=True))


# --- tones


def test_a_blur_keeps_the_mean_and_lowers_the_variance():
    images, labels = picture(2, 2, 64, 48)
    changed, marks = augment.apply(images, labels, exactly(2, blur=2.0))
    torch.testing.assert_close(changed.mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=0.02, rtol=0)
    assert (changed.std(dim=(2, 3)) < 0.3 * images.std(dim=(2, 3))).all()
    assert torch.equal(marks, labels)


def test_a_blur_is_a_gaussian_of_that_sigma():
    from scipy.ndimage import gaussian_filter

    images = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    images[0, 0, 32, 32] = 1
    changed, _ = augment.apply(images, torch.zeros(1, 65, 65, dtype=torch.uint8), exactly(blur=3.0))
    np.testing.assert_allclose(changed[0, 0], gaussian_filter(images[0, 0].numpy(), 3, truncate=8), atol=1e-9)


def test_noise_is_normal_with_the_drawn_sigma_and_differs_between_samples_and_channels():
    images, labels = picture(2, 2, 128, 128)
    images = images * 5 + 100
    values = augment.draw(AugmentConfig(**NEVER), 0, 0, [0, 1]) | {"noise": torch.tensor([0.5, 1.5])}
    noise = (augment.apply(images, labels, values)[0] - images) / images.std(dim=(2, 3), keepdim=True)
    for sample, sigma in enumerate((0.5, 1.5)):
        for channel in noise[sample]:
            z = channel / sigma
            assert z.mean() == pytest.approx(0, abs=0.03)
            assert z.std() == pytest.approx(1, abs=0.03)
            assert (z**4).mean() == pytest.approx(3, abs=0.3)
            assert (z[1:] * z[:-1]).mean() == pytest.approx(0, abs=0.03)
            assert (z[:, 1:] * z[:, :-1]).mean() == pytest.approx(0, abs=0.03)
    apart = np.corrcoef(noise.flatten(0, 1).flatten(1).numpy()) - np.eye(4)
    assert np.abs(apart).max() < 0.03


def test_dropout_sets_one_rectangle_to_the_mean_and_leaves_the_labels():
    images, labels = picture(50, 2, 40, 60)
    values = augment.draw(AugmentConfig(**{**NEVER, "dropout_p": 1, "dropout": 0.5}), 0, 0, range(50))
    changed, marks = augment.apply(images, labels, values)
    assert torch.equal(marks, labels)
    heights, widths = [], []
    for image, before in zip(changed, images, strict=True):
        rows, columns = torch.nonzero((image != before).all(dim=0)).T
        heights.append(int(rows.max() - rows.min() + 1))
        widths.append(int(columns.max() - columns.min() + 1))
        assert len(rows) == heights[-1] * widths[-1]
        torch.testing.assert_close(image[:, rows, columns], before.mean(dim=(1, 2))[:, None].expand(-1, len(rows)))
    assert 1 <= min(heights) < 5
    assert 15 < max(heights) <= 20
    assert 25 < max(widths) <= 30


def test_brightness_contrast_and_gamma_do_what_they_say():
    images, labels = picture(1, 2, 32, 32)
    mean, std = images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True, correction=0)
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    expected = {
        "brightness": images + 0.3 * std,
        "contrast": (images - mean) * 1.3 + mean,
        "gamma": ((images - low) / (high - low)) ** 1.3 * (high - low) + low,
    }
    for name, wanted in expected.items():
        changed, marks = augment.apply(images, labels, exactly(**{name: 0.3}))
        torch.testing.assert_close(changed, wanted, atol=1e-4, rtol=1e-4)
        assert torch.equal(marks, labels)


def test_a_stretch_widens_and_flattens():
    before, after = (
        torch.nonzero(augment.apply(*disc(), exactly(stretch=amount))[1][0]).double().std(dim=0)
        for amount in (0.0, 0.25)
    )
    high, wide = (after / before).tolist()
    assert (wide, high) == (pytest.approx(1.25, abs=0.03), pytest.approx(0.8, abs=0.03))


def test_the_gamma_of_a_negative_is_that_of_the_picture_turned_over():
    images, labels = picture(1, 2, 32, 32)
    of_negative = augment.apply(-images, labels, exactly(gamma=0.3))[0]
    found = augment.apply(images, labels, exactly(gamma=0.3, gamma_inverted=1))[0]
    torch.testing.assert_close(found, -of_negative, **AGREE)


def test_a_share_of_the_gammas_is_made_to_the_negative():
    config = AugmentConfig(**{**NEVER, "gamma_p": 0.5, "gamma_inverted": 0.4})
    values = augment.draw(config, 0, 0, range(2000))
    assert not values["gamma_inverted"][values["gamma"] == 0].any()
    assert 0.35 < values["gamma_inverted"][values["gamma"] != 0].mean() < 0.45


def test_a_colour_shifts_each_channel_by_itself_and_as_drawn():
    images, labels = picture(1, 3, 32, 32)
    changed = augment.apply(images, labels, exactly(colour=0.5))[0]
    shifts = (changed - images) / images.std(dim=(2, 3), keepdim=True, correction=0)
    each = shifts.mean(dim=(2, 3))[0]
    torch.testing.assert_close(shifts, each[None, :, None, None].expand_as(shifts), **AGREE)
    assert len(set(each.tolist())) == 3
    assert each.abs().max() <= 0.5


def test_a_coarse_picture_has_lost_its_finest_detail_and_kept_its_mean():
    checked = torch.from_numpy(np.indices((32, 32)).sum(axis=0) % 2).double()[None, None]
    changed, _ = augment.apply(checked, torch.zeros(1, 32, 32, dtype=torch.uint8), exactly(coarse=0.5))
    assert changed.std() < 0.1 * checked.std()
    assert changed.mean().item() == pytest.approx(0.5, abs=1e-6)


def test_knobs_that_came_later_leave_the_earlier_draws_as_they_were():
    earlier = {**NEVER, **{f"{name}_p": 1.0 for name in augment.LEAST}}
    before, after = (augment.draw(AugmentConfig(**(earlier | more)), 1, 2, range(4)) for more in ({}, ALWAYS))
    for name in (*augment.LEAST, "box"):
        assert torch.equal(before[name], after[name])
    assert torch.equal(before["keys"][:, :2], after["keys"][:, :2])
