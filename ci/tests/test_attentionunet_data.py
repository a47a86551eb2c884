"""ISIC 2018 as Attention U-Net reads it: pairs, squares, augmentation, the split tool, and what is refused."""

import colorsys
import json
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from AttentionUNet import backup, data, dataset, presets, train
from AttentionUNet.data import (
    INFO,
    NO_JITTER,
    Jitter,
    augment,
    build_datasets,
    crop_box,
    draw_jitter,
    jitter_colours,
    validation_images,
)
from AttentionUNet.isic import MASKS, find_pairs, match, read_pair
from AttentionUNet.model import build_model
from ci.tests.folders import ROOT, built, carry_out, parsed
from ci.tests.runs import as_if_started, assert_same_state, last_checkpoint
from ci.tests.samples import Finished
from common.data.pairs import check_pairs as check_all
from common.data.pictures import Datasets, Source
from common.errors import InputError
from common.samples.layout import draw


def uncached(image_size: int) -> Namespace:
    """The values that say how training pictures are read."""
    return Namespace(cache="", image_size=image_size, exif=None)


def check_pairs(pairs, decode_images=False):
    check_all(pairs, read_pair, decode_images)


def read_mask(path: Path) -> np.ndarray:
    return MASKS.read(path).values


@pytest.fixture
def isic(tmp_path) -> Callable[..., Path]:
    """isic(train=2, valid=1, test=1, size=(30, 40)) -> a folder in the layout; a bright disc on grey noise."""

    def make(size: tuple[int, int] = (30, 40), **counts: int) -> Path:
        root, number = tmp_path / "isic", 0
        for split, count in {"train": 2, "valid": 1, "test": 1, **counts}.items():
            for _ in range(count):
                write_pair(root / split, root / f"{split}_GT", f"ISIC_{number:07d}", size, number)
                number += 1
        return root

    return make


def TrainSet(pairs, image_size, *options, read=None, **more):
    source = Source(pairs, read or data.training_reader(uncached(image_size)), INFO)
    return Finished(data.TrainSet(source, image_size, *options, **more))


def EvalSet(pairs, image_size):
    return Finished(data.EvalSet(Source(pairs, read_pair, INFO), image_size))


def datasets(root: Path, *flags: str) -> Datasets:
    """The data sets of a run with these flags."""
    return build_datasets(parsed("AttentionUNet", f"--data_path={root}", "--image_size=32", *flags))


def write_pair(images: Path, masks: Path, name: str, size: tuple[int, int], seed: int) -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    lesion = np.hypot(y - size[0] / 2, x - size[1] / 2) < min(size) / 4
    pixels = np.random.default_rng(seed).integers(0, 100, (*size, 3)) + 120 * lesion[..., None]
    Image.fromarray(pixels.astype(np.uint8)).save(images / f"{name}.jpg", quality=95)
    Image.fromarray(np.where(lesion, 255, 0).astype(np.uint8)).save(masks / f"{name}_segmentation.png")


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- pairs


def test_the_splits_have_their_pairs(isic):
    root = isic(train=3, valid=2)
    train_set, val_set, test_set = datasets(root)
    assert (len(train_set), len(val_set), len(test_set)) == (3, 2, 1)
    for split, count in (("valid", 2), ("test", 1)):
        train_none, scored, test_none = datasets(root, "--evaluate", f"--eval_split={split}")
        assert (train_none, len(scored), test_none) == (None, count, None)
        assert scored.pairs == find_pairs(root, split)
    assert [pair.image.name for pair in train_set.pairs] == [f"ISIC_{i:07d}.jpg" for i in range(3)]
    assert [pair.mask.name for pair in train_set.pairs] == [f"ISIC_{i:07d}_segmentation.png" for i in range(3)]
    assert validation_images(root) == [root / "valid" / f"ISIC_{i:07d}.jpg" for i in (3, 4)]


def test_a_run_that_scores_nothing_needs_the_training_split_alone(isic):
    root = isic(valid=0, test=0)
    assert datasets(root, "--no_validate")[1:] == (None, None)
    with pytest.raises(InputError, match=r"no valid/.*it holds train, train_GT.*--data_path must name"):
        datasets(root)


def test_an_evaluation_needs_the_split_that_is_scored_alone(isic):
    root = isic(train=0, valid=0, test=2)
    assert len(datasets(root, "--evaluate", "--eval_split=test").val) == 2
    with pytest.raises(InputError, match=r"no valid/"):
        datasets(root, "--evaluate")


def test_a_folder_without_a_test_split_has_none(isic):
    assert datasets(isic(test=0)).test is None


def test_other_files_are_passed_over(isic):
    root = isic()
    for name in ("ATTRIBUTION.txt", "LICENSE.txt", "._ISIC_0000000.jpg", "Thumbs.db"):
        (root / "train" / name).touch()
        (root / "train_GT" / name).touch()
    assert len(find_pairs(root, "train")) == 2


def test_superpixels_are_no_pictures(isic):
    """ISIC 2016 and 2017 have them beside the pictures."""
    root = isic()
    Image.new("RGB", (8, 8)).save(root / "train" / "ISIC_0000000_superpixels.png")
    assert [pair.image.name for pair in find_pairs(root, "train")] == ["ISIC_0000000.jpg", "ISIC_0000001.jpg"]
    assert len(match(root / "train", root / "train_GT")) == 2  # what dataset.py splits


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".tif"])
def test_pictures_are_known_by_their_suffix(isic, suffix):
    root = isic()
    path = root / "train" / "ISIC_0000001.jpg"
    path.rename(path.with_suffix(suffix))
    assert find_pairs(root, "train")[1].image.suffix == suffix


def test_what_is_missing_is_counted_and_named(isic):
    root = isic(train=5)
    for number in range(4):
        (root / "train_GT" / f"ISIC_{number:07d}_segmentation.png").unlink()
    with pytest.raises(InputError, match=r"4 of 5 pictures .*ISIC_0000000.jpg, .*2.jpg, \.\.\.; add the missing"):
        find_pairs(root, "train")
    for number in range(4):
        (root / "train" / f"ISIC_{number:07d}.jpg").unlink()
    assert len(find_pairs(root, "train")) == 1
    write_pair(root / "train", root / "train_GT", "ISIC_9", (8, 8), 0)
    (root / "train" / "ISIC_9.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 2 masks .* have no picture .*ISIC_9_segmentation.png"):
        find_pairs(root, "train")


def test_folders_that_do_not_fit_are_refused(isic, tmp_path):
    root = isic()
    with pytest.raises(InputError, match=r"no folder .*nowhere; --data_path must name"):
        find_pairs(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="is a file; --data_path"):
        find_pairs(root / "train" / "ISIC_0000000.jpg", "train")
    for path in (root / "valid_GT").iterdir():
        path.unlink()
    (root / "valid_GT").rmdir()
    with pytest.raises(InputError, match=r"no folder .*valid_GT; it must hold the masks"):
        find_pairs(root, "valid")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no picture \(\.png, \.jpg, .*\) in .*empty"):
        match(tmp_path / "empty", root / "train_GT")
    Image.new("RGB", (4, 4)).save(root / "train" / "ISIC_0000000.png")
    with pytest.raises(InputError, match=r"ISIC_0000000.jpg and ISIC_0000000.png have the same name"):
        find_pairs(root, "train")


# ---- masks


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_masks_of_any_plain_mode(tmp_path, mode):
    values = np.zeros((4, 6), np.uint8)
    values[1:3, 2:5] = 255
    Image.fromarray(values).convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "mask.png")), values)


def test_masks_that_are_none(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(path)
    with pytest.raises(InputError, match=r"mask.png holds values up to 1; masks are 0 and 255"):
        read_mask(path)
    Image.fromarray(np.eye(4, dtype=np.uint16) * 65535).save(path)
    with pytest.raises(InputError, match=r"mask.png holds whole numbers of more than 8 bits; masks are"):
        read_mask(path)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cannot decode the label file .*mask.png"):
        read_mask(path)
    Image.new("L", (4, 4)).save(path)  # no lesion at all
    assert not read_mask(path).any()


def test_pairs_are_checked_before_training(isic):
    root = isic(train=3)
    pairs = find_pairs(root, "train")
    check_pairs(pairs, decode_images=True)
    whole = pairs[1].image.read_bytes()
    pairs[1].image.write_bytes(whole[: len(whole) // 2])
    for decode_images in (False, True):
        with pytest.raises(InputError, match=r"cannot decode the image .*ISIC_0000001.jpg .*end mark"):
            check_pairs(pairs, decode_images)
    pairs[1].image.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot decode the image .*ISIC_0000001.jpg"):
        check_pairs(pairs)
    pairs[1].image.write_bytes(whole)
    Image.new("L", (41, 30)).save(pairs[2].mask)
    with pytest.raises(InputError, match=r"ISIC_0000002.jpg is 40x30 and its label .* is 41x30 pixels; .*same size"):
        check_pairs(pairs)
    with pytest.raises(InputError, match="same size"):
        EvalSet(pairs, 32)[2]


# ---- evaluation


def test_evaluation_resizes_to_a_square(isic):
    pair = find_pairs(isic(size=(30, 40)), "valid")[0]
    Image.new("RGB", (40, 30), (0, 51, 255)).save(pair.image)
    mask = np.zeros((30, 40), np.uint8)
    mask[:15, :10] = 255
    mask[20:, 20:] = (128, 127) * 10  # above and at the threshold
    Image.fromarray(mask).save(pair.mask)
    image, target = EvalSet([pair], image_size=60)[0]
    assert image.shape == (3, 60, 60) and image.dtype == torch.float32
    assert target.shape == (60, 60) and target.dtype == torch.int64
    assert image[:, 30, 30].tolist() == pytest.approx([-1, -0.6, 1], abs=0.03)
    rows, columns = np.arange(60) * 30 // 60, (np.arange(60) + 0.5) * 40 / 60
    expected = mask[rows][:, columns.astype(int)] > 127
    assert np.array_equal(target.numpy(), expected.astype(np.int64))
    assert equal(EvalSet([pair], 60)[0], (image, target))


# ---- training


def train_set(isic, size=(30, 40), probability=1.0, mask_resize="nearest", image_size=64, seed=0) -> Finished:
    return TrainSet(find_pairs(isic(size=size), "train"), image_size, seed, probability, mask_resize)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (6, 200), (200, 6)])
@pytest.mark.parametrize("mask_resize", ["nearest", "bilinear"])
def test_training_samples_are_squares(isic, size, mask_resize):
    samples = train_set(isic, size, mask_resize=mask_resize)
    for epoch in range(12):
        image, target = samples[epoch, epoch % 2]
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert image.min() >= -1 and image.max() <= 1
        assert target.shape == (64, 64)
        if mask_resize == "nearest":
            assert target.dtype == torch.int64 and set(target.unique().tolist()) <= {0, 1, 255}
        else:
            assert target.dtype == torch.float32
            assert ((target >= 0) & (target <= 1) | (target == 255)).all()


def test_without_augmentation_a_sample_is_the_whole_picture(isic):
    samples = train_set(isic, size=(120, 160), probability=0.0)
    image, target = samples[0, 1]
    whole, mask = EvalSet(samples.dataset.pairs, 64)[1]
    assert (image - whole).abs().mean() < 0.1  # by way of another size
    assert (target == mask).float().mean() > 0.99
    assert not equal(samples[0, 0], samples[0, 1])


def test_soft_masks_are_shares_of_lesion(isic):
    hard, soft = (train_set(isic, (120, 160), 0.0, resize) for resize in ("nearest", "bilinear"))
    (_, target), (_, blended) = hard[0, 0], soft[0, 0]
    edges = (blended > 0) & (blended < 1)
    assert 10 < edges.sum() < 300
    assert ((blended > 0.5) == (target == 1)).float().mean() > 0.98
    assert blended.sum().item() == pytest.approx(target.sum().item(), rel=0.03)


def test_a_sample_depends_on_seed_epoch_and_index_alone(isic):
    root = isic()
    pairs = find_pairs(root, "train")
    samples = TrainSet(pairs, 32, seed=5, augmentation_prob=1)
    first = samples[3, 1]
    np.random.default_rng(0).random(5)
    torch.rand(5)
    assert equal(samples[3, 1], first)
    assert equal(TrainSet(pairs, 32, seed=5, augmentation_prob=1)[3, 1], first)
    for seed, key in ((5, (4, 1)), (6, (3, 1)), (5, (3, 0))):
        assert not equal(TrainSet(pairs, 32, seed=seed, augmentation_prob=1)[key], first)


def test_large_photographs_are_decoded_at_a_fraction_of_their_size(isic):
    """At an image size of 32 the work is done in 45 pixels: an eighth of 1200 is more than twice that."""
    pair = find_pairs(isic(size=(800, 1200)), "train")[0]
    read = data.training_reader(uncached(32))
    image, mask = read(pair)
    assert image.shape == (100, 150, 3) and mask.shape == (100, 150)
    whole, lesion = read_pair(pair)
    assert whole.shape == (800, 1200, 3) and lesion.shape == (800, 1200)
    averaged = np.asarray(Image.fromarray(whole).resize((150, 100), Image.Resampling.BOX), int)
    assert np.abs(image - averaged).mean() < 3
    inner = (lesion.reshape(100, 8, 150, 8) > 127).mean((1, 3))
    assert ((mask > 127) == (inner > 0.5))[(inner == 0) | (inner == 1)].all()  # nothing moves by more than a pixel
    samples = [TrainSet([pair], 32, 0, read=reader)[0, 0] for reader in (read, read_pair)]
    assert (samples[0][0] - samples[1][0]).abs().mean() < 0.03  # of 2, from black to white
    assert (samples[0][1] == samples[1][1]).float().mean() > 0.99


def test_small_photographs_are_decoded_as_they_are(isic):
    pair = find_pairs(isic(size=(120, 160)), "train")[0]
    assert equal(
        map(torch.from_numpy, data.training_reader(uncached(64))(pair)), map(torch.from_numpy, read_pair(pair))
    )


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.4, 60, 100), (1.0, 200, 200)])
def test_the_share_of_augmented_samples(isic, monkeypatch, probability, low, high):
    calls = []
    monkeypatch.setattr(data, "augment", lambda pictures, rng, scale: (calls.append(scale), pictures)[1])
    samples = train_set(isic, probability=probability, image_size=112)
    for epoch in range(200):
        samples[epoch, 0]
    assert low <= len(calls) <= high
    assert set(calls) <= {0.5}


def test_working_widths_are_those_of_the_original(isic, monkeypatch):
    sizes = []
    monkeypatch.setattr(data, "augment", lambda arrays, rng, scale: (sizes.append(arrays[0].shape[1::-1]), arrays)[1])
    samples = train_set(isic, size=(30, 40), image_size=224)
    for epoch in range(150):
        samples[epoch, 0]
    widths = {width for width, _ in sizes}
    assert (min(widths), max(widths)) == (300, 320) and len(widths) > 18
    assert all(height == width * 3 // 4 for width, height in sizes)


def test_augmentation_moves_mask_and_picture_alike():
    """A picture that is white on the lesion stays so, and what comes from beyond it is black and does not count."""
    mask = np.zeros((232, 310), np.uint8)
    mask[30:200, 40:170] = 255
    image = np.where(mask == 255, 200, 100).astype(np.uint8)[..., None].repeat(3, 2)
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        pixels, lesion, inside = augment((image, mask, np.full_like(mask, 255)), rng, scale=1.0)
        finished = torch.from_numpy(pixels).permute(2, 0, 1).float()
        pixels = jitter_colours(finished, draw_jitter(rng)).permute(1, 2, 0).numpy()
        assert pixels.shape[:2] == lesion.shape == inside.shape
        seen.add(lesion.shape[0] > lesion.shape[1])
        grey, counts = pixels.astype(int).mean(axis=2), inside == 255
        assert set(np.unique(inside)) <= {0, 255} and set(np.unique(lesion)) <= {0, 255}
        dark, bright = grey[counts & (lesion == 0)], grey[counts & (lesion == 255)]
        assert np.median(dark) + 20 < np.median(bright)
        middle = (np.median(dark) + np.median(bright)) / 2
        assert (dark < middle).all() and (bright > middle).all()
        assert (~counts).mean() < 0.12  # of the corners that a turn by up to ten degrees leaves
        assert (lesion[~counts] == 0).all()
    assert seen == {True, False}


def test_what_lies_beyond_the_picture_is_ignored_and_no_background(isic, monkeypatch):
    monkeypatch.setattr(data, "MAX_DEGREES", 40)  # of ten, the crop leaves next to nothing
    samples = train_set(isic, size=(120, 160))
    for pair in samples.dataset.pairs:
        Image.new("RGB", (160, 120), (255, 255, 255)).save(pair.image)
        Image.new("L", (160, 120), 255).save(pair.mask)
    ignored = 0
    for epoch in range(60):
        image, target = samples[epoch, 0]
        assert set(target.unique().tolist()) <= {1, 255}  # nothing of a picture full of lesion is background
        black = (image < -0.5).all(dim=0)
        assert (target[black] == 255).all()
        ignored += (target == 255).any().item()
    assert 20 < ignored < 60


def test_quarter_turns_flips_and_degrees_are_drawn_evenly(monkeypatch):
    """Where the corners of a picture with four colours go."""
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[:100, :100], pixels[:100, 100:], pixels[100:, :100] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    blank = np.full((200, 200), 255, np.uint8)
    orders, degrees = {}, []
    real = Image.Image.rotate
    monkeypatch.setattr(Image.Image, "rotate", lambda self, by, *a: (degrees.append(by), real(self, by, *a))[1])
    for seed in range(400):
        turned, *_ = augment((pixels, blank, blank), np.random.default_rng(seed), 200 / 310)
        height, width = turned.shape[:2]
        corners = [turned[y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
        order = tuple(int(corner.argmax()) if corner.any() else 3 for corner in corners)
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 8  # turns and flips: every symmetry of the square
    assert all(25 <= count <= 80 for count in orders.values())
    assert set(degrees) == set(range(-10, 11))


def test_crop_boxes_have_the_bounds_of_the_original():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box((310, 232), 260 / 310, rng, 20) for _ in range(500)])
    left, top, right, bottom = boxes.T
    full_height = int(232 * 260 / 310)
    assert (left.min(), left.max()) == (25, 45) and (right.min(), right.max()) == (265, 285)
    assert top.min() == (232 - full_height) // 2 and bottom.max() == top.min() + full_height
    assert len(set(left)) == len(set(bottom)) == 21
    for size in ((300, 8), (1, 1), (3, 300)):
        left, top, right, bottom = crop_box(size, 0.8, rng, 20)
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


def jittered(colour, jitter) -> tuple[float, ...]:
    pixels = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).repeat(1, 4, 4)
    return tuple(jitter_colours(pixels, jitter)[:, 1, 2].tolist())


def test_colours_change_a_little_and_grey_stays_grey():
    greys, hues, orders = [], [], set()
    for seed in range(200):
        jitter = draw_jitter(np.random.default_rng(seed))
        orders.add(jitter[:3])
        red, green, blue = jittered((100, 100, 100), jitter)
        assert red == pytest.approx(green) and red == pytest.approx(blue)
        greys.append(red / 100)
        hue = 360 * colorsys.rgb_to_hsv(*(value / 255 for value in jittered((200, 40, 40), jitter)))[0]
        hues.append((hue + 180) % 360 - 180)
    assert 0.8 <= min(greys) < 0.85 and 1.15 < max(greys) <= 1.2
    assert -7.21 <= min(hues) <= -6 and 6 <= max(hues) <= 7.21  # 0.02 of 360 is 7.2
    assert len(orders) == 6


def test_each_change_of_colours_is_that_of_pillow():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    for factor in (0.8, 0.93, 1.2):
        for name, enhance in (("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)):
            got = jitter_colours(pixels.clone(), NO_JITTER._replace(**{name: factor})).permute(1, 2, 0).numpy()
            assert np.abs(got - np.asarray(enhance(image).enhance(factor))).max() <= 1.2  # Pillow cuts off fractions
    both = jitter_colours(pixels.clone(), Jitter(1, 0, 2, 1.2, 0.8)).permute(1, 2, 0).numpy()
    expected = ImageEnhance.Brightness(ImageEnhance.Contrast(image).enhance(0.8)).enhance(1.2)
    assert np.abs(both - np.asarray(expected)).max() <= 2.5


def test_the_samples_that_are_augmented_are_jittered_and_no_others(isic):
    samples = train_set(isic, probability=0.4).dataset
    draws = [samples[epoch, 0][2] for epoch in range(200)]
    changed = sum(draw.tolist() != list(NO_JITTER) for draw in draws)
    assert 60 <= changed <= 100
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8) + torch.tensor([10, 100, 200], dtype=torch.uint8).view(3, 1, 1)
    finished = samples.finish(images, torch.tensor([NO_JITTER, Jitter(0, 1, 2, brightness=0.5)]))
    assert finished[0, :, 0, 0].tolist() == pytest.approx([10 / 127.5 - 1, 100 / 127.5 - 1, 200 / 127.5 - 1], abs=1e-5)
    assert finished[1, :, 0, 0].tolist() == pytest.approx([5 / 127.5 - 1, 50 / 127.5 - 1, 100 / 127.5 - 1], abs=1e-5)


def test_the_embedded_sample_fits(tmp_path):
    root = draw("isic", tmp_path / "sample", train_images=2, val_images=1, size=(36, 48))
    for part in datasets(root):
        key = (0, 0) if isinstance(part, data.TrainSet) else 0
        _, target = Finished(part)[key]
        assert 0 < (target == 1).float().mean() < 0.9
        part.check(decode_images=True)


# ---- the split tool


@pytest.fixture
def origin(tmp_path) -> Callable[[int], list[str]]:
    """origin(n) -> the flags of the tool for n empty pictures, in the layout of the archives, and six targets."""

    def make(count: int) -> list[str]:
        images, masks = tmp_path / "ISIC2018_Task1-2_Training_Input", tmp_path / "ISIC2018_Task1_Training_GroundTruth"
        images.mkdir(exist_ok=True)
        masks.mkdir(exist_ok=True)
        for number in range(count):
            (images / f"ISIC_{number:07d}.jpg").write_text(f"{number}")
            (masks / f"ISIC_{number:07d}_segmentation.png").write_text(f"mask {number}")
        (images / "LICENSE.txt").touch()
        flags = [f"--origin_data_path={images}", f"--origin_GT_path={masks}"]
        for split in ("train", "valid", "test"):
            flags += [f"--{split}_path={tmp_path / 'out' / split}", f"--{split}_GT_path={tmp_path / 'out' / split}_GT"]
        return flags

    return make


def split(flags: list[str], *more: str) -> dict[str, list[str]]:
    return dataset.main(dataset.parse([*flags, *more]))


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_2594_pictures_are_split_as_the_readme_says(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.shutil, "copyfile", lambda source, copy: Path(copy).touch())
    names = split(origin(2594), "--train_ratio=0.7", "--valid_ratio=0.1", "--test_ratio=0.2")
    assert {part: len(found) for part, found in names.items()} == {"train": 1815, "valid": 259, "test": 520}
    assert len(set().union(*names.values())) == 2594
    assert names["train"] == sorted(names["train"]) and names["train"] != [f"ISIC_{i:07d}" for i in range(1815)]
    assert split(origin(0), "--overwrite") == names  # the same seed
    assert split(origin(0), "--overwrite", "--seed=1") != names
    halves = split(origin(0), "--overwrite", "--train_ratio=0.6", "--valid_ratio=0.2")
    assert {part: len(found) for part, found in halves.items()} == {"train": 1556, "valid": 518, "test": 520}


def test_ratios_are_taken_as_they_are_written(origin, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset.shutil, "copyfile", lambda source, copy: Path(copy).touch())
    assert [len(part) for part in split(origin(10)).values()] == [7, 1, 2]
    flags = ("--overwrite", "--train_ratio=1", "--valid_ratio=1", "--test_ratio=1")
    assert [len(part) for part in split(origin(10), *flags).values()] == [3, 3, 4]


def test_a_split_of_ratio_0_is_empty(origin, tmp_path):
    out = tmp_path / "out"
    names = split(origin(10), "--test_ratio=0")
    assert [len(part) for part in names.values()] == [8, 2, 0]  # 8.75 and 1.25
    assert not (out / "test").exists() and not (out / "test_GT").exists()
    assert [len(part) for part in split(origin(10), "--overwrite").values()] == [7, 1, 2]
    assert datasets(out).test is not None
    assert split(origin(10), "--overwrite", "--test_ratio=0") == names
    assert datasets(out).test is None  # and no folder that lacks its pictures


def test_files_are_copied_with_their_masks_and_listed(origin, tmp_path, capsys):
    names = split(origin(10))
    out = tmp_path / "out"
    for part, found in names.items():
        assert listed(out / part) == [f"{name}.jpg" for name in found]
        assert listed(out / f"{part}_GT") == [f"{name}_segmentation.png" for name in found]
        for name in found:
            assert (out / part / f"{name}.jpg").read_text() == f"{int(name[5:])}"
    assert len(listed(tmp_path / "ISIC2018_Task1-2_Training_Input")) == 11  # copied, not moved
    lists = json.loads((out / "split.json").read_text())
    assert {part: lists[part] for part in names} == names
    assert (lists["seed"], lists["ratios"]) == (12345, ["7/10", "1/10", "1/5"])
    assert "train: 7 pictures" in capsys.readouterr().out


def test_an_earlier_split_is_replaced_only_when_asked_for(origin, tmp_path):
    flags, out = origin(10), tmp_path / "out"
    first = split(flags)
    (out / "train" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"train is not empty .*--overwrite"):
        split(flags, "--seed=1")
    assert listed(out / "valid") == [f"{name}.jpg" for name in first["valid"]]
    second = split(flags, "--seed=1", "--overwrite")
    assert second != first
    for part, found in second.items():
        assert [name for name in listed(out / part) if name != "notes.txt"] == [f"{name}.jpg" for name in found]
        assert listed(out / f"{part}_GT") == [f"{name}_segmentation.png" for name in found]
    assert (out / "train" / "notes.txt").read_text() == "mine"


def test_the_lists_of_another_split_are_replaced_only_when_asked_for(origin, tmp_path):
    flags, lists = origin(10), tmp_path / "out" / "split.json"
    split(flags)
    written = lists.read_text()
    others = [
        f"--{part}{kind}_path={tmp_path / 'out' / part}2{kind}" for part in dataset.SPLITS for kind in ("", "_GT")
    ]
    with pytest.raises(InputError, match=r"out is not empty \(split.json\).*--overwrite"):
        split(flags, *others, "--seed=1")
    assert lists.read_text() == written and not (tmp_path / "out" / "train2").exists()
    lists.unlink()
    lists.mkdir()
    with pytest.raises(InputError, match=r"split.json is not of an earlier split"):
        split(flags, *others, "--overwrite")


def test_suffixes_may_be_in_capitals(origin, tmp_path):
    flags = origin(10)
    for path in list(tmp_path.glob("ISIC*/ISIC_000000[0-4]*")):
        path.rename(path.with_suffix(path.suffix.upper()))
    names = split(flags)
    assert split(flags, "--seed=1", "--overwrite") != names
    assert sum(len(listed(tmp_path / "out" / f"{part}_GT")) for part in names) == 10


def test_pictures_of_others_are_never_touched(origin, tmp_path):
    flags, out = origin(10), tmp_path / "out"
    (out / "valid").mkdir(parents=True)
    (out / "valid" / "holiday.jpg").write_text("mine")
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match=r"holiday.jpg is not of this split, and is not touched"):
            split(flags, *more)
    assert listed(out) == ["valid"] and (out / "valid" / "holiday.jpg").read_text() == "mine"


def test_an_interrupted_split_can_be_done_again(origin, tmp_path, monkeypatch):
    flags, real, calls = origin(10), dataset.write_atomically, []

    def interrupted(path, write):
        calls.append(path)
        if len(calls) == 9:
            raise KeyboardInterrupt
        real(path, write)

    monkeypatch.setattr(dataset, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split(flags)
    monkeypatch.setattr(dataset, "write_atomically", real)
    with pytest.raises(InputError, match="is not empty"):
        split(flags)
    names = split(flags, "--overwrite")
    assert sum(len(listed(tmp_path / "out" / part)) for part in names) == 10


def test_splits_that_cannot_work_are_refused(origin, tmp_path, capsys):
    flags = origin(10)
    with pytest.raises(InputError, match="10 pictures give 7 for training and 0 for validation"):
        split(flags, "--valid_ratio=0")
    with pytest.raises(InputError, match="are all 0"):
        split(flags, "--train_ratio=0", "--valid_ratio=0", "--test_ratio=0")
    with pytest.raises(InputError, match="train is named twice"):
        split(flags, f"--valid_path={tmp_path / 'out' / 'train'}")
    with pytest.raises(InputError, match="GroundTruth is named twice"):
        split(flags, f"--test_GT_path={tmp_path / 'ISIC2018_Task1_Training_GroundTruth'}")
    for text in ("-0.1", "x", "1/0"):
        with pytest.raises(SystemExit):
            split(flags, f"--train_ratio={text}")
        assert f"'{text}' is not a number of at least 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        split(flags, "--seed=-1")
    assert "'-1' is not a whole number from 0 to 4294967295" in capsys.readouterr().err
    next((tmp_path / "ISIC2018_Task1_Training_GroundTruth").iterdir()).unlink()
    with pytest.raises(InputError, match="1 of 10 pictures"):
        split(flags)
    assert not (tmp_path / "out").exists()


def test_without_arguments_the_folder_of_the_original_readme_is_split(origin, tmp_path):
    origin(10)
    here = tmp_path / "AttentionUNet"
    here.mkdir()
    (tmp_path / "common").symlink_to(ROOT / "common")
    for name in ("__init__.py", "dataset.py", "isic.py"):
        shutil.copy(ROOT / "AttentionUNet" / name, here)
    run = partial(subprocess.run, [sys.executable, "dataset.py"], cwd=here, capture_output=True, text=True)
    missing = run()
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "ISIC/dataset/ISIC2018_Task1-2_Training_Input; unpack the pictures" in missing.stderr
    (here / "ISIC" / "dataset").mkdir(parents=True)
    for folder in tmp_path.glob("ISIC2018_*"):
        folder.rename(here / "ISIC" / "dataset" / folder.name)
    done = run()
    assert done.returncode == 0, done.stderr
    assert len(listed(here / "dataset" / "train")) == len(listed(here / "dataset" / "train_GT")) == 7


def test_the_tool_ends_with_one_line_for_what_cannot_work():
    done = as_if_started(ROOT / "AttentionUNet" / "dataset.py", "--origin_data_path=/none", "--origin_GT_path=/no")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no folder /none" in done.stderr


# ---- copies of finished runs


def finished_run(folder: Path, text: str = "new") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    names = ("train.log", "metrics.jsonl", "config.json", "result.json", "AttU_bs16_1p_acc.log", "checkpoints/best.pt")
    for name in (*names, "checkpoints/last.pt", ".lock"):
        (folder / name).write_text(text)
    return folder


def test_the_copy_of_a_run_holds_logs_result_and_best_weights(tmp_path):
    run, copies = finished_run(tmp_path / "run"), tmp_path / "backup"
    copy = backup.copy_run(run, "full_1p", copies)
    assert copy == copies / "1p_full" and listed(copies) == ["1p_full"]
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    names = ["AttU_bs16_1p_acc.log", "checkpoints/best.pt", "config.json", "metrics.jsonl", "result.json", "train.log"]
    assert files == names
    assert backup.copy_run(run, "tiny", copies) is None and listed(copies) == ["1p_full"]
    for preset, name in (
        ("full_8p", "8p_full"),
        ("performance_1p", "1p_performance"),
        ("performance_8p", "8p_performance"),
    ):
        assert backup.copy_run(run, preset, copies) == copies / name


def test_an_older_copy_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, capsys):
    copies = tmp_path / "backup"
    backup.copy_run(finished_run(tmp_path / "old", "old"), "full_1p", copies)
    (copies / "1p_full" / "extra").touch()
    new = finished_run(tmp_path / "new")

    def full_disk(source, copy):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(backup.shutil, "copyfile", full_disk)
        assert backup.copy_run(new, "full_1p", copies) is None
    assert "no space left" in capsys.readouterr().err
    assert (copies / "1p_full" / "train.log").read_text() == "old" and listed(copies) == ["1p_full"]
    backup.copy_run(new, "full_1p", copies)
    assert (copies / "1p_full" / "train.log").read_text() == "new"
    assert not (copies / "1p_full" / "extra").exists() and listed(copies) == ["1p_full"]


# ---- whole runs


def flags_of(root: Path, output_dir: Path | None, *flags: str) -> list[str]:
    """A short run on the CPU; without `output_dir` in the folder that the preset says."""
    given = [] if output_dir is None else [f"--output_dir={output_dir}"]
    return ["--preset=tiny", f"--data_path={root}", "--device=cpu", "--workers=0", "--image_size=32", *given, *flags]


def run(root: Path, output_dir: Path | None, *flags: str) -> dict:
    return carry_out("AttentionUNet", *flags_of(root, output_dir, *flags))


def test_a_finished_training_is_scored_on_the_test_split_once(isic, tmp_path, capsys):
    root, output_dir = isic(train=4, valid=2, test=2), tmp_path / "run"
    first = run(root, output_dir, "--epochs=2", "--max_steps=3")
    assert not any(name.startswith("test_") for name in first)
    result = run(root, output_dir, "--epochs=2", "--resume=auto")
    assert "best weights on the split test:  jaccard" in capsys.readouterr().out
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    assert not any("test" in name for row in rows for name in row)
    scored = run(
        root, tmp_path / "eval", "--evaluate", "--eval_split=test", f"--checkpoint={output_dir}/checkpoints/best.pt"
    )
    tested = {name.removeprefix("test_"): value for name, value in result.items() if name.startswith("test_")}
    assert set(tested) == {"jaccard", "dice", "accuracy", "sensitivity", "specificity", "precision", "f1"} | {
        "per_image_jaccard",
        "thresholded_jaccard",
        "eval_loss",
    }
    assert tested == pytest.approx({name: scored[name] for name in tested}, nan_ok=True)
    closing = (output_dir / "train.log").read_text()
    assert f"Final Train Accuracy : {result['accuracy']:.4f}" in closing
    assert f"Final Jaccard : {result['jaccard']:.4f}" in closing
    capsys.readouterr()
    assert run(root, output_dir, "--epochs=2", "--resume=auto") == result  # it is complete
    assert "best weights" not in capsys.readouterr().out


def test_a_run_that_goes_on_without_validation_has_no_final_score(isic, tmp_path, capsys):
    """The score of before is the best one, and not that of the weights at the end."""
    root, output_dir = isic(train=4, valid=2), tmp_path / "run"
    first = run(root, output_dir, "--max_steps=2")
    assert first["scores"] and "n/a" not in capsys.readouterr().out
    result = run(root, output_dir, "--resume=auto", "--no_validate")
    assert (result["steps"], result["scores"], result["best"]) == (4, [], first["best"])
    assert json.loads((output_dir / "result.json").read_text()) == result and "accuracy" not in result
    assert "Final Train Accuracy : n/a" in capsys.readouterr().out


def test_only_whole_runs_in_their_own_folder_are_copied(isic, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(train, "copy_run", lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(presets.PRESETS, "tiny", {**presets.PRESETS["tiny"], "output_dir": str(tmp_path / "own")})
    root = isic(train=4)
    run(root, tmp_path / "other", "--epochs=1")
    run(root, None, "--epochs=1", "--max_steps=1")
    run(root, None, "--epochs=4", "--prof_test")
    assert calls == []
    run(root, None, "--epochs=1")
    assert calls == [(str(tmp_path / "own"), "tiny")]


def scaled_loss(monkeypatch, factor: Callable[[], float]) -> None:
    """Multiply the loss of a training by what `factor` returns."""
    real = train.training_loss

    def loss(*arguments, **options):
        by = factor()
        return {name: by * term for name, term in real(*arguments, **options).items()}

    monkeypatch.setattr(train, "training_loss", loss)


@pytest.mark.parametrize("loss_scale", ["dynamic", "1024"])
def test_a_run_with_skipped_steps_continues_bit_for_bit(isic, tmp_path, loss_scale, monkeypatch):
    """fp16 with O2; the first step overflows: Adam does not count it, whether it comes before or after the pause."""
    root = isic(train=4)
    flags = ["--amp", "--opt_level=O2", f"--loss_scale={loss_scale}", "--no_validate", "--deterministic"]
    with monkeypatch.context() as patched:
        scaled_loss(patched, lambda: 1e6)
        run(root, tmp_path / "parts", *flags, "--max_steps=1")
    paused = last_checkpoint(tmp_path / "parts")
    assert paused["amp"]["skipped_steps"] == 1
    assert all(state["step"] == 0 and not state["exp_avg"].any() for state in paused["optimizer"]["state"].values())
    run(root, tmp_path / "parts", *flags, "--resume=auto")

    factors = iter([1e6])
    scaled_loss(monkeypatch, lambda: next(factors, 1.0))
    run(root, tmp_path / "whole", *flags)
    one, other = (last_checkpoint(tmp_path / name) for name in ("parts", "whole"))
    assert 1 <= one["amp"]["skipped_steps"] < 4
    assert_same_state(one, other)
    assert all(value.dtype != torch.float16 for value in one["model"].values())


def test_a_run_of_a_plain_adam_continues_with_a_fused_one(isic, tmp_path):
    """What an NPU wrote, on CUDA: the fused one takes its number of steps on the device, in float32."""
    root, output_dir = isic(train=4), tmp_path / "run"
    run(root, output_dir, "--max_steps=1", "--no_validate")
    file = output_dir / "checkpoints" / "last.pt"
    saved = torch.load(file, weights_only=True)
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = None
    for state in saved["optimizer"]["state"].values():
        state["step"] = state["step"].double()
    torch.save(saved, file)
    run(root, output_dir, "--resume=auto", "--no_validate")
    steps = {
        (state["step"].dtype, state["step"].item())
        for state in last_checkpoint(output_dir)["optimizer"]["state"].values()
    }
    assert steps == {(torch.float32, 4.0)}


def test_a_run_without_a_test_split_says_so(isic, tmp_path, capsys):
    result = run(isic(train=2, test=0), tmp_path / "run", "--epochs=1")
    assert "the split test is not evaluated: there is no test/" in capsys.readouterr().out
    assert "test_jaccard" not in result


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size=50"], r"\[2, 3, 50, 50\].*multiples of 16.*64 x 64"),
        (["--image_size=16", "--device_batch_size=1"], r"single pixel"),
        (["--batch-size=3"], r"2 training images are fewer than the 3 "),
        (["--decay_epochs=5"], r"--decay_epochs 5 are more than --epochs 2"),
        (["--evaluate"], r"--evaluate is given without --checkpoint"),
        (["--evaluate", "--eval_split=test", "--checkpoint=/none.pt"], r"no checkpoint /none.pt"),
        (["--load_from=/none.pt"], r"no checkpoint /none.pt"),
        (["--resume=/none.pt"], r"no checkpoint /none.pt"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(isic, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(isic(), tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_a_damaged_test_picture_is_found_before_training(isic, tmp_path):
    root = isic()
    next((root / "test").iterdir()).write_bytes(b"x")
    with pytest.raises(InputError, match="cannot decode the image .*test/ISIC_0000003.jpg"):
        run(root, tmp_path / "run")


def test_the_size_that_a_network_was_trained_on_is_that_of_its_predictions(isic, tmp_path):
    root, output_dir = isic(train=2, size=(30, 44)), tmp_path / "run"
    run(root, output_dir, "--epochs=1", "--image_size=48")
    weights, checkpoint = output_dir / "checkpoints" / "last.pt", last_checkpoint(output_dir)
    assert checkpoint["options"]["image_size"] == 48
    flags = ["--preset=tiny", f"--data_path={root}", f"--output_dir={tmp_path / 'score'}", "--device=cpu"]
    flags += ["--evaluate", f"--checkpoint={weights}"]
    with pytest.raises(InputError, match=r"last.pt was trained on 48 pixels, and pictures of 64 would be evaluated"):
        built("AttentionUNet", *flags)
    built("AttentionUNet", *flags, "--image_size=64")
    picture = root / "valid" / "ISIC_0000002.jpg"
    words = ["--checkpoint", weights, "--device=cpu", "--input", picture, "--output", tmp_path / "out"]
    done = as_if_started(ROOT / "AttentionUNet" / "predict.py", *words)
    assert done.returncode == 0, done.stderr
    ids = np.asarray(Image.open(tmp_path / "out" / "ISIC_0000002_ids.png"))

    model = build_model(**checkpoint["options"]).eval()
    model.load_state_dict(checkpoint["model"])
    with torch.no_grad():
        logits = model(data.to_input(Image.open(picture), {"image_size": 48})[None])
    logits = torch.nn.functional.interpolate(logits, size=(30, 44), mode="bilinear", align_corners=False)
    assert np.array_equal(ids, (logits[0, 0] > 0).numpy())
