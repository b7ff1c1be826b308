"""Augmentation: each change does what its name says, is seeded, and keeps targets honest."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from ferkit.core.errors import DataError, RecipeError

pytest.importorskip("keras", reason="needs ferkit[train]")

from keras import ops

from ferkit.augment import (
    PRESETS,
    AugmentConfig,
    Augmenter,
    augment_preview,
    balanced_rows,
    class_weights,
)
from ferkit.augment.layer import _warp
from ferkit.data.cartoon import draw_faces


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (64, 6, 6), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8), np.uint8))


def test_no_augmentation_changes_nothing(faces):
    np.testing.assert_array_equal(augment_preview(faces, "none"), faces)


@pytest.mark.parametrize(
    ("config", "flipped"),
    [
        (AugmentConfig(mirror=1.0), np.s_[:, :, ::-1]),
        (AugmentConfig(upside_down=1.0), np.s_[:, ::-1]),
        (AugmentConfig(mirror=1.0, upside_down=1.0), np.s_[:, ::-1, ::-1]),
    ],
)
def test_flips_are_exact(faces, config, flipped):
    np.testing.assert_array_equal(augment_preview(faces, config), faces[flipped])


def test_mirror_happens_with_its_probability(faces):
    many = np.repeat(faces[:1], 2000, axis=0)
    mirrored = (augment_preview(many, AugmentConfig(mirror=0.3)) == faces[0, :, ::-1]).all(axis=(1, 2))
    # Four standard deviations of a share of 0.3 over 2,000.
    assert mirrored.mean() == pytest.approx(0.3, abs=0.041)


def test_a_shift_moves_by_at_most_its_share_and_replicates_the_edge():
    spot = np.zeros((200, 48, 48), np.uint8)
    spot[:, 23:25, 23:25] = 255
    moved = augment_preview(spot, AugmentConfig(shift=0.25))
    weight = moved / moved.sum(axis=(1, 2), keepdims=True)
    rows = (weight.sum(axis=2) * np.arange(48)).sum(axis=1) - 23.5
    assert np.abs(rows).max() <= 12.01
    assert np.abs(rows).max() > 10
    edge = np.zeros((50, 48, 48), np.uint8)
    edge[:, :, 0] = 200
    wide = augment_preview(edge, AugmentConfig(shift=0.25))
    assert {0, 200} <= set(np.unique(wide))
    assert (wide[:, :, 0].max(axis=1) == wide[:, :, 0].min(axis=1)).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "cubic"])
def test_shifting_and_mirroring_keep_every_pixel(interpolation):
    noise = np.random.default_rng(8).integers(0, 256, (40, 48, 48), np.uint8)
    config = AugmentConfig(shift=0.1, mirror=0.5, interpolation=interpolation)
    for face, source in zip(augment_preview(noise, config), noise, strict=True):
        middle = face[8:-8, 8:-8]
        assert any(
            np.array_equal(middle, either[8 + dy : 40 + dy, 8 + dx : 40 + dx])
            for either in (source, source[:, ::-1])
            for dy in range(-5, 6)
            for dx in range(-5, 6)
        )
    np.testing.assert_array_equal(
        augment_preview(noise, AugmentConfig(upside_down=1.0, interpolation=interpolation)), noise[:, ::-1]
    )


def test_pixels_read_from_a_finer_grid_are_those_that_keras_reads():
    rng = np.random.default_rng(6)
    finer = rng.uniform(0, 255, (8, 24, 24, 1)).astype(np.float32)
    maps = rng.uniform(-2, 2, (8, 8)).astype(np.float32)
    maps[:, 6:] = 0
    whole = ops.image.affine_transform(
        finer, maps, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
    )
    read = _warp(ops.convert_to_tensor(finer), ops.convert_to_tensor(maps), 12)
    np.testing.assert_allclose(read, whole[:, :12, :12], atol=1e-3)


def test_cubic_interpolation_goes_to_the_same_place_and_stays_sharper():
    rng = np.random.default_rng(9)
    noise = rng.integers(0, 256, (60, 48, 48)).astype(np.uint8)
    smooth = np.kron(rng.integers(60, 200, (60, 3, 3)), np.ones((16, 16))).astype(np.uint8)
    config = PRESETS["modern"].model_copy(update={"brightness": 0.0, "contrast": 0.0})
    cubic = config.model_copy(update={"interpolation": "cubic"})

    def fineness(faces):
        return np.abs(np.diff(faces.astype(float), axis=2)).mean()

    assert fineness(augment_preview(noise, cubic)) > 1.1 * fineness(augment_preview(noise, config))
    # Flat regions are the same under both, so nothing went elsewhere.
    difference = np.abs(augment_preview(smooth, cubic).astype(int) - augment_preview(smooth, config))
    assert np.median(difference) == 0
    assert difference.mean() < 1.0


def test_zoom_above_one_enlarges():
    disc = np.zeros((20, 48, 48), np.uint8)
    disc[:, 16:32, 16:32] = 255
    area = (augment_preview(disc, AugmentConfig(zoom=(1.5, 1.5))) > 127).sum(axis=(1, 2))
    assert area == pytest.approx(np.full(20, 24 * 24), rel=0.05)


def test_rotation_turns_about_the_middle():
    bar = np.zeros((100, 48, 48), np.uint8)
    bar[:, 23:25, 4:44] = 255
    turned = augment_preview(bar, AugmentConfig(rotation=90.0))
    assert turned[:, 23:25, 23:25].min() > 100
    assert turned[:, 4:10, 23:25].max() > 100


def test_light_stays_in_range_and_keeps_the_mean_for_contrast_alone(faces):
    soft = (faces // 4 + 96).astype(np.uint8)
    changed = augment_preview(soft, AugmentConfig(contrast=0.5)).astype(float)
    np.testing.assert_allclose(changed.mean(axis=(1, 2)), soft.mean(axis=(1, 2)), atol=0.6)
    lit = augment_preview(faces, AugmentConfig(brightness=1.0))
    assert lit.min() == 0
    assert lit.max() == 255


def test_erasing_covers_the_share_it_should():
    black = np.zeros((500, 48, 48), np.uint8)
    erased = augment_preview(black, AugmentConfig(erasing=1.0, erasing_area=(0.1, 0.1)))
    share = (erased > 0).mean(axis=(1, 2))
    assert share.max() <= 0.115
    assert np.median(share) > 0.05
    off = augment_preview(black, AugmentConfig(erasing=0.2))
    # Four standard deviations of 0.2 over 500, and a few rectangles drawn in black.
    assert (off.max(axis=(1, 2)) > 0).mean() == pytest.approx(0.2, abs=0.075)


def test_the_same_seed_gives_the_same_faces_and_another_seed_others(faces):
    first = augment_preview(faces, "strong", 4)
    np.testing.assert_array_equal(first, augment_preview(faces, "strong", 4))
    assert (first != augment_preview(faces, "strong", 5)).any()


def test_mixup_mixes_targets_by_the_same_share_as_pixels():
    images = np.zeros((200, 48, 48, 1), np.float32)
    images[::2] = 200.0
    targets = {"a": np.eye(2, dtype=np.float32)[np.arange(200) % 2]}
    mixed, out = Augmenter(AugmentConfig(mixup=1.0), 1)(images, targets)
    mixed, share = np.asarray(mixed), np.asarray(out["a"])
    np.testing.assert_allclose(mixed[:, 0, 0, 0] / 200, share[:, 0], atol=1e-5)
    np.testing.assert_allclose(share.sum(axis=1), 1, atol=1e-5)
    assert (share[np.arange(200), np.arange(200) % 2] >= 0.5).all()
    assert share.max(axis=1).min() < 0.6


def test_cutmix_mixes_targets_by_the_pasted_area():
    images = np.zeros((200, 48, 48, 1), np.float32)
    images[::2] = 1.0
    targets = {"a": np.eye(2, dtype=np.float32)[np.arange(200) % 2]}
    mixed, out = Augmenter(AugmentConfig(cutmix=1.0), 1)(images, targets)
    np.testing.assert_allclose(np.asarray(mixed).mean(axis=(1, 2, 3)), np.asarray(out["a"])[:, 0], atol=1e-5)
    assert set(np.unique(np.asarray(mixed))) == {0.0, 1.0}


def test_both_mixes_share_the_images_and_the_rest_stays():
    config = AugmentConfig(mixup=0.5, cutmix=1.0, mix_probability=0.6)
    images = np.zeros((4000, 8, 8, 1), np.float32)
    images[::2] = 1.0
    mixed, _ = Augmenter(config, 2)(images, {})
    mixed = np.asarray(mixed)
    untouched = (mixed == images).all(axis=(1, 2, 3)).mean()
    # 0.4 are not mixed (four standard deviations: 0.031); empty boxes leave a few more as they were.
    assert 0.369 <= untouched < 0.52


def test_targets_of_unlabelled_faces_stay_zero():
    images = np.zeros((8, 48, 48, 1), np.float32)
    _, out = Augmenter(AugmentConfig(mixup=1.0), 0)(images, {"a": np.zeros((8, 3), np.float32)})
    assert np.asarray(out["a"]).max() == 0


@pytest.mark.parametrize(
    "values",
    [{"mirror": 1.5}, {"zoom": (1.2, 0.8)}, {"erasing_area": (0.0, 0.2)}, {"rotate": 3}, {"contrast": 1.0}],
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(values)


def test_an_unknown_preset_is_named(faces):
    with pytest.raises(RecipeError, match="'rainbow'; known are none, student"):
        augment_preview(faces, "rainbow")


LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def test_copies_fill_every_class_up_to_the_largest():
    rows = balanced_rows(LABELS, "copies", np.random.default_rng(0))
    assert np.bincount(LABELS[rows]).tolist() == [60, 60, 60]
    assert set(rows) == set(range(100))


def test_oversampling_keeps_the_length_and_evens_the_classes():
    rows = np.concatenate([balanced_rows(LABELS, "oversample", np.random.default_rng(k)) for k in range(60)])
    assert len(rows) == 6000
    # Four standard deviations of a third over 6,000.
    assert np.bincount(LABELS[rows]) / 6000 == pytest.approx(np.full(3, 1 / 3), abs=0.025)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_other_balances_use_every_row_once(balance):
    rows = balanced_rows(LABELS, balance, np.random.default_rng(0))
    assert sorted(rows) == list(range(100))


def test_weights_are_inverse_frequencies_with_mean_one():
    weights = class_weights(LABELS, 4)
    assert weights[LABELS].mean() == pytest.approx(1.0)
    assert (weights[:3] * [60, 30, 10]).tolist() == pytest.approx([100 / 3] * 3)
    assert weights[3] == 0


def test_an_unknown_balance_is_refused():
    with pytest.raises(DataError, match="unknown balance 'smote'"):
        balanced_rows(LABELS, "smote", np.random.default_rng(0))


def test_the_student_preset_is_the_students():
    assert PRESETS["student"] == AugmentConfig(mirror=0.5, upside_down=0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 1.0},
        {"low_light": 1.0},
        {"yaw": 40.0},
        {"glasses": 1.0},
        {"mask": 1.0},
        {"downscale": 1.0},
        {"blur": 1.0},
        {"jpeg": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_degrades_photos_changes_every_face_and_keeps_its_range(change):
    drawn = draw_faces(40, seed=1).images
    degraded = augment_preview(drawn, AugmentConfig(**change), seed=2)
    assert degraded.shape == drawn.shape
    assert (degraded != drawn).any(axis=(1, 2)).all()
    assert np.array_equal(degraded, augment_preview(drawn, AugmentConfig(**change), seed=2))
    assert not np.array_equal(degraded, augment_preview(drawn, AugmentConfig(**change), seed=3))


@pytest.mark.parametrize("name", ["low_light", "glasses", "mask", "downscale", "blur", "jpeg"])
def test_a_degradation_happens_as_often_as_asked(name):
    drawn = draw_faces(1000, seed=3).images
    changed = (augment_preview(drawn, AugmentConfig(**{name: 0.3})) != drawn).any(axis=(1, 2))
    # Four standard deviations of a share of 0.3 over 1,000.
    assert changed.mean() == pytest.approx(0.3, abs=0.058)


def test_compression_is_that_of_libjpeg():
    drawn = draw_faces(50, seed=4).images
    for quality in (15, 40, 75):
        ours = augment_preview(drawn, AugmentConfig(jpeg=1.0, jpeg_quality=(quality, quality)))
        files = [cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for face in drawn]
        theirs = np.stack([cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files])
        # libjpeg computes in integers.
        assert np.abs(ours.astype(int) - theirs).mean() < 0.6
        assert np.abs(drawn.astype(int) - theirs).mean() > 1


def test_a_blur_is_gaussian_and_scales_with_the_face():
    spot = np.zeros((30, 96, 96), np.uint8)
    spot[:, 46:50, 46:50] = 255
    blurred = augment_preview(spot, AugmentConfig(blur=1.0, blur_sigma=(1.0, 1.0))).astype(float)
    expected = cv2.GaussianBlur(spot[0].astype(np.float32), (0, 0), 2.0, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(blurred, np.broadcast_to(expected, blurred.shape), atol=1.5)


def test_downscaling_takes_the_named_sizes():
    drawn = draw_faces(60, seed=5).images
    found = augment_preview(drawn, AugmentConfig(downscale=1.0, downscale_to=(0.5, 0.25)))
    pixels = drawn[..., None].astype(np.float32)
    shrunk = [
        ops.image.resize(ops.image.resize(pixels, (side, side), antialias=True), (48, 48))
        for side in (24, 12)
    ]
    sizes = [np.abs(found - np.asarray(one)[..., 0]).max(axis=(1, 2)) <= 0.51 for one in shrunk]
    assert (sizes[0] | sizes[1]).all()
    assert 0.2 < sizes[0].mean() < 0.8


def test_glasses_cover_the_eyes_and_a_mask_the_mouth():
    white = np.full((200, 48, 48), 255, np.uint8)
    eyes = augment_preview(white, AugmentConfig(glasses=1.0)) < 150
    mouth = augment_preview(white, AugmentConfig(mask=1.0)) < 250
    for column in (15, 33):  # FER2013's eyes: 0.31 and 0.69 across, 0.40 down
        assert eyes[:, 19, column].mean() > 0.95
    assert not eyes[:, 30:].any()
    assert mouth[:, 38, 24].mean() > 0.9  # gray values up to 240 on a white face
    assert not mouth[:, :24].any()


def test_a_turn_shifts_the_middle_to_one_side_and_leaves_the_edge():
    ramp = np.tile(np.arange(48, dtype=np.uint8) * 5, (300, 48, 1))
    turned = augment_preview(ramp, AugmentConfig(yaw=30.0))
    moved = turned[:, 24, 24].astype(int) - ramp[0, 24, 24]
    # sin(30 degrees) of a radius of 0.45 * 48 pixels, five gray values each.
    assert np.abs(moved).max() == pytest.approx(54, abs=4)
    assert (moved > 20).any()
    assert (moved < -20).any()
    assert np.array_equal(turned[:, :, 0], ramp[:, :, 0])


def test_low_light_leaves_a_fifth_to_half_of_the_light():
    gray = np.full((200, 48, 48), 200, np.uint8)
    light = augment_preview(gray, AugmentConfig(low_light=1.0)).mean(axis=(1, 2)) / 200
    assert light.min() > 0.19
    assert light.max() < 0.51
    assert light.max() - light.min() > 0.2


def test_gamma_keeps_black_and_white_and_goes_both_ways():
    three = np.zeros((100, 48, 48), np.uint8)
    three[:, 16:32], three[:, 32:] = 128, 255
    changed = augment_preview(three, AugmentConfig(gamma=1.0))
    assert not changed[:, :16].any()
    assert (changed[:, 32:] == 255).all()
    assert changed[:, 20, 20].min() < 100
    assert changed[:, 20, 20].max() > 150


def test_the_preset_for_photos_degrades_what_strong_augments():
    extra = {k: v for k, v in PRESETS["photos"].model_dump().items() if v != getattr(AugmentConfig(), k)}
    assert set(PRESETS["strong"].model_dump(exclude_defaults=True)) <= set(extra)
    assert {"gamma", "low_light", "yaw", "glasses", "mask", "downscale", "blur", "jpeg"} <= set(extra)
    drawn = draw_faces(32, seed=6).images
    assert np.isfinite(augment_preview(drawn, "photos")).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"downscale_to": (1.0,)}, "downscale_to"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma"),
        ({"jpeg_quality": (0, 50)}, "jpeg_quality"),
    ],
)
def test_ranges_of_degradations_are_checked(values, message):
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**values)
