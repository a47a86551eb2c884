"""PASCAL VOC as DynamicUNet reads, augments and scores it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ci.tests.samples import Finished
from ci.tests.test_contract import build, last_checkpoint
from common.args import parse_args
from common.crops import BlurredCrops
from common.data import StepSampler
from common.device import World
from common.errors import InputError
from common.evaluate import evaluate
from common.metrics import ConfusionMatrix
from common.sample import draw
from DynamicUNet import presets, train
from DynamicUNet.data import build_datasets, center_crop, validation_images
from DynamicUNet.voc import CLASS_NAMES, NUM_CLASSES, PALETTE, Pair, check_pairs, find_pairs, read_mask, read_pair


def TrainSet(pairs, *sizes, **options):
    return Finished(BlurredCrops(pairs, read_pair, *sizes, **options))


def blocks(rng: np.random.Generator, size: tuple[int, int], values: int, channels: tuple[int, ...] = ()) -> np.ndarray:
    """[*size, *channels] uint8 in squares of 4 pixels: each of the values 0..values - 1 where there is room."""
    cells = (-(-size[0] // 4), -(-size[1] // 4), *channels)
    drawn = np.resize(rng.permutation(values), cells).astype(np.uint8)
    return drawn.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]


def save_picture(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks(rng, size, 256, (3,))).save(path, quality=95)


def save_mask(path: Path, ids: np.ndarray, palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(ids)
    if palette:
        mask.putpalette([0] * 768)  # ids are the indices, whatever the colours
    mask.save(path)


def save_sbd_mask(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": ids, "CategoriesPresent": [1]}})


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


@pytest.fixture
def devkit(tmp_path) -> Callable[..., Path]:
    """devkit(train=2, val=1, size=(32, 48)) -> a VOCdevkit folder; ids 0..20 in squares, 255 in the first column."""

    def make(train: int = 2, val: int = 1, size: tuple[int, int] = (32, 48)) -> Path:
        root = tmp_path / "VOCdevkit"
        voc = root / "VOC2012"
        for year, split, count in ((2007, "train", train), (2008, "val", val)):
            names = [f"{year}_{index:06d}" for index in range(count)]
            write_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt", names)
            for index, name in enumerate(names):
                rng = np.random.default_rng((year, index))
                save_picture(voc / "JPEGImages" / f"{name}.jpg", rng, size)
                ids = blocks(rng, size, 21)
                ids[:, 0] = 255
                save_mask(voc / "SegmentationClass" / f"{name}.png", ids)
        return root

    return make


@pytest.fixture
def augmented(devkit) -> Path:
    """VOC: a and b to train, c and d to validate; SBD: b, c, e to train, d, f, g to validate."""
    root = devkit(train=0, val=0)
    voc, sbd = root / "VOC2012", root / "VOCaug" / "dataset"
    rng = np.random.default_rng(0)
    for split, names in (("train", "ab"), ("val", "cd")):
        write_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt", list(names))
        for name in names:
            save_picture(voc / "JPEGImages" / f"{name}.jpg", rng, (8, 12))
            save_mask(voc / "SegmentationClass" / f"{name}.png", np.full((8, 12), 1, np.uint8))
    for split, names in (("train", "bce"), ("val", "dfg")):
        write_list(sbd / f"{split}.txt", list(names))
        for name in names:
            save_picture(sbd / "img" / f"{name}.jpg", rng, (8, 12))
            ids = np.full((8, 12), 2, np.uint8)
            ids[0, :3] = (0, 20, 7)
            save_sbd_mask(sbd / "cls" / f"{name}.mat", ids)
    return root


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- the classes


def test_classes_and_colours_are_those_of_voc():
    assert NUM_CLASSES == len(CLASS_NAMES) == len(PALETTE) == len(set(PALETTE)) == 21
    colours = {
        "background": (0, 0, 0), "aeroplane": (128, 0, 0), "bicycle": (0, 128, 0), "bird": (128, 128, 0),
        "boat": (0, 0, 128), "bus": (0, 128, 128), "car": (128, 128, 128), "cat": (64, 0, 0), "chair": (192, 0, 0),
        "cow": (64, 128, 0), "horse": (192, 0, 128), "person": (192, 128, 128), "pottedplant": (0, 64, 0),
        "sofa": (0, 192, 0), "train": (128, 192, 0), "tvmonitor": (0, 64, 128),
    }  # fmt: skip
    assert colours.items() <= dict(zip(CLASS_NAMES, PALETTE, strict=True)).items()


# ---- which pictures


def test_the_splits_have_their_pairs_and_only_what_is_asked_for(devkit):
    root = devkit(train=3, val=2)
    train_set, val_set = build_datasets(root, base_size=32, crop_size=(16, 16), seed=0)
    assert (len(train_set), len(val_set)) == (3, 2)
    assert build_datasets(root, 32, (16, 16), 0, train=False)[0] is None
    assert build_datasets(root, 32, (16, 16), 0, val=False)[1] is None
    voc = root / "VOC2012"
    assert find_pairs(root, "val") == [
        Pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png")
        for name in ("2008_000000", "2008_000001")
    ]
    assert validation_images(root) == [pair.image for pair in find_pairs(root, "val")]


def test_lists_may_be_in_any_order_and_have_blank_lines(devkit):
    root = devkit(train=3)
    path = root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    expected = find_pairs(root, "train")
    path.write_text("\n2007_000002 \r\n2007_000000\n\n2007_000001\n2007_000000")
    assert find_pairs(root, "train") == expected


def test_pascal_aug_is_voc_and_sbd_without_the_validation_pictures(augmented):
    voc, sbd = augmented / "VOC2012", augmented / "VOCaug" / "dataset"
    train_set, val_set = build_datasets(augmented, 8, (8, 8), 0, dataset="pascal_aug")
    fine = [Pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png") for name in "abcd"]
    coarse = [Pair(sbd / "img" / f"{name}.jpg", sbd / "cls" / f"{name}.mat") for name in "efg"]
    assert list(train_set.pairs) == fine[:2] + coarse  # no c, no d: they are validated on
    assert list(val_set.pairs) == fine[2:]
    assert find_pairs(augmented, "train") == fine[:2]
    check_pairs(train_set.pairs, decode_images=True)
    image, target = TrainSet(coarse, 8, (8, 12), seed=0, scales=(1.0, 1.0))[0, 0]
    assert set(target.unique().tolist()) == {0, 2, 7, 20}
    assert image.shape == (3, 8, 12)


def test_pascal_aug_needs_sbd_for_training_alone(devkit):
    root = devkit()
    assert len(build_datasets(root, 32, (16, 16), 0, dataset="pascal_aug", train=False)[1]) == 1
    with pytest.raises(InputError, match=r"no folder .*VOCaug/dataset.*img/, cls/, train.txt.*looks nowhere else"):
        find_pairs(root, "train", "pascal_aug")
    (root / "VOCaug" / "dataset" / "img").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no cls/ in .*it holds img"):
        find_pairs(root, "train", "pascal_aug")


def test_the_embedded_sample_and_what_it_is_made_of(tmp_path):
    root = draw("voc", tmp_path / "sample", train_images=2, val_images=2, size=(64, 80))
    for split in ("train", "val"):
        pairs = find_pairs(root, split)
        check_pairs(pairs, decode_images=True)
        values = {value for pair in pairs for value in np.unique(np.asarray(read_mask(pair.label))).tolist()}
        assert 0 in values and 255 in values and values <= {*range(21), 255}


# ---- what can be wrong with them


def test_folders_that_do_not_fit(devkit, tmp_path):
    root = devkit()
    for path, message in (
        (tmp_path / "nowhere", "no folder .*nowhere; --data_path must name the VOCdevkit folder"),
        (tmp_path, f"no VOC2012/ in .*try --data_path={root}"),
        (root / "VOC2012", f"no VOC2012/ in .*try --data_path={root}"),
        (root / "VOC2012" / "JPEGImages" / "2007_000000.jpg", "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            find_pairs(path, "train")
    (root / "VOC2012" / "SegmentationClass").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"no SegmentationClass/ in .*unpack"):
        find_pairs(root, "train")


@pytest.mark.parametrize("content", ["", " \n"])
def test_lists_that_do_not_fit(devkit, content):
    root = devkit()
    path = root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text(content)
    with pytest.raises(InputError, match="train.txt is empty"):
        find_pairs(root, "train")
    path.write_text("/JPEGImages/2007_000001.jpg /SegmentationClass/2007_000001.png\n")
    with pytest.raises(InputError, match=r"train.txt holds paths \(/JPEGImages/2007_000001.jpg, .*such as 2007_000032"):
        find_pairs(root, "train")
    path.unlink()
    with pytest.raises(InputError, match=r"no list .*train.txt \(there is val.txt\)"):
        find_pairs(root, "train")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="train.txt is no text"):
        find_pairs(root, "train")


@pytest.mark.parametrize(("part", "name", "kind"), [
    ("JPEGImages", "2007_000001.jpg", "images"), ("SegmentationClass", "2007_000001.png", "masks"),
])  # fmt: skip
def test_missing_files_are_counted_and_named(devkit, part, name, kind):
    root = devkit(train=3)
    (root / "VOC2012" / part / name).unlink()
    with pytest.raises(InputError, match=rf"1 of 3 listed {kind} are not there: .*{name}; unpack"):
        find_pairs(root, "train")


def test_masks_of_other_kinds_are_refused_by_name(devkit, tmp_path):
    pair = find_pairs(devkit(), "train")[0]
    ids = np.asarray(read_mask(pair.label)).copy()
    save_mask(pair.label, ids, palette=False)  # grey values that are ids
    assert np.array_equal(np.asarray(read_mask(pair.label)), ids)
    Image.fromarray(ids).convert("RGB").save(pair.label)
    with pytest.raises(InputError, match=f"{pair.label} is a RGB image"):
        check_pairs([pair])
    ids[3, 4] = 21
    save_mask(pair.label, ids)
    with pytest.raises(InputError, match=rf"{pair.label} holds the values \[21\]"):
        check_pairs([pair])
    pair.label.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot decode the label file"):
        check_pairs([pair])


def test_sizes_that_differ_and_damaged_pictures_are_found_before_training(devkit):
    pair = find_pairs(devkit(), "train")[0]
    check_pairs([pair], decode_images=True)
    whole = pair.image.read_bytes()
    pair.image.write_bytes(whole[: len(whole) // 2])
    check_pairs([pair])  # the header is whole
    with pytest.raises(InputError, match=f"cannot decode the image {pair.image}"):
        check_pairs([pair], decode_images=True)
    pair.image.write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"cannot read the image {pair.image}"):
        check_pairs([pair])
    Image.new("RGB", (48, 31)).save(pair.image)
    for look in (lambda: check_pairs([pair]), lambda: read_pair(pair)):
        with pytest.raises(InputError, match="48x31 and its label .* 48x32 pixels; .* same size"):
            look()


def test_mat_files_that_do_not_fit(tmp_path):
    path = tmp_path / "a.mat"
    for write, message in (
        (lambda: path.write_bytes(b"nothing at all"), "cannot read GTcls.Segmentation in .*a.mat"),
        (lambda: savemat(path, {"other": 1}), "cannot read GTcls.Segmentation in .*a.mat"),
        (lambda: savemat(path, {"GTcls": {"Boundaries": 1}}), "cannot read GTcls.Segmentation in .*a.mat"),
        (lambda: save_sbd_mask(path, np.zeros((2, 3, 4), np.uint8)), r"uint8 \[2, 3, 4\] and no \[H, W\]"),
        (lambda: save_sbd_mask(path, np.zeros((2, 3))), r"float64 \[2, 3\] and no \[H, W\]"),
        (lambda: save_sbd_mask(path, np.full((2, 3), 300, np.uint16)), "holds the values 300, which are no class ids"),
    ):
        write()
        with pytest.raises(InputError, match=message) as error:
            read_mask(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="unpack or download it again"):
        read_mask(tmp_path / "missing.mat")


def test_scales_that_are_no_range_are_refused(devkit):
    for scales in ((0.0, 2.0), (2.0, 0.5)):
        with pytest.raises(InputError, match="--min_scale .* 0 < min <= max"):
            build_datasets(devkit(), base_size=32, crop_size=(16, 16), seed=0, scales=scales)
    with pytest.raises(InputError, match="--min_scale 0.01 of --base_size 32 is less than a pixel"):
        build_datasets(devkit(), base_size=32, crop_size=(16, 16), seed=0, scales=(0.01, 2.0))


# ---- training samples


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (9, 70)])
@pytest.mark.parametrize("crop_size", [(16, 16), (80, 80), (24, 40)])
def test_training_samples_are_crops_of_float_images_and_integer_targets(devkit, size, crop_size):
    train_set = TrainSet(find_pairs(devkit(size=size), "train"), base_size=32, crop_size=crop_size, seed=0)
    seen = set()
    for epoch in range(10):
        image, target = train_set[epoch, epoch % 2]
        assert image.shape == (3, *crop_size) and image.dtype == torch.float32
        assert target.shape == crop_size and target.dtype == torch.int64
        assert image.isfinite().all() and image.min() > -2.2 and image.max() < 2.7  # of black and white, normalised
        seen |= set(target.unique().tolist())
    assert seen <= {*range(21), 255} and len(seen) > 10


def test_the_index_chooses_the_picture(devkit):
    pairs = find_pairs(devkit(train=3), "train")
    for grey, pair in zip((0, 100, 200), pairs, strict=True):
        Image.new("RGB", (48, 32), (grey,) * 3).save(pair.image)
    train_set = TrainSet(pairs, base_size=32, crop_size=(8, 8), seed=0)
    for grey, index in ((200, 2), (0, 0), (100, 1)):
        assert train_set[0, index][0][0].mean().item() == pytest.approx((grey / 255 - 0.485) / 0.229, abs=0.02)


def test_what_is_padded_is_black_and_ignored_and_not_background(devkit):
    pair = find_pairs(devkit(), "train")[0]
    save_mask(pair.label, np.full((32, 48), 3, np.uint8))
    train_set = TrainSet([pair], base_size=16, crop_size=(80, 80), seed=0)
    shorts = set()
    for epoch in range(30):
        image, target = train_set[epoch, 0]
        short, long = (target[:, 0] == 3).sum().item(), (target[0] == 3).sum().item()
        shorts.add(short)
        assert long == int(short * 48 / 32)
        assert (target[:short, :long] == 3).all()
        assert (target == 255).sum() == 80 * 80 - short * long  # 255 wherever the picture is not
        black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
        assert torch.allclose(image[:, 79, 79], black, atol=1e-5)
    assert 8 <= min(shorts) <= 10 and 30 <= max(shorts) <= 32  # half to twice the base


def test_a_sample_depends_on_seed_epoch_and_index_alone(devkit):
    pairs = find_pairs(devkit(), "train")
    train_set = TrainSet(pairs, 32, (24, 24), seed=5)
    first = train_set[3, 1]
    np.random.default_rng(0).random(5)
    torch.rand(5)
    assert equal(train_set[3, 1], first)  # not on what was drawn before
    assert equal(TrainSet(pairs, 32, (24, 24), seed=5)[3, 1], first)
    for seed, key in ((5, (4, 1)), (6, (3, 1)), (5, (3, 0)), (5, (1, 1))):
        assert not equal(TrainSet(pairs, 32, (24, 24), seed)[key], first)


def test_a_later_epoch_is_no_shifted_copy_of_an_earlier_one(devkit):
    pairs = find_pairs(devkit(train=1), "train") * 4  # one picture under four indices
    train_set = TrainSet(pairs, 32, (24, 24), seed=0)
    samples = [train_set[epoch, index][0] for epoch in range(4) for index in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(samples) for b in samples[:i])


def test_images_in_training_are_flipped_scaled_and_cut_anywhere(devkit):
    pair = find_pairs(devkit(train=1, size=(40, 80)), "train")[0]
    columns = np.arange(80, dtype=np.uint8).repeat(3).reshape(1, 80, 3).repeat(40, 0)
    Image.fromarray(columns * 3).save(pair.image, quality=98)  # brighter from left to right
    train_set = TrainSet([pair], base_size=40, crop_size=(20, 20), seed=0)
    rows = np.array([train_set[epoch, 0][0][0, 10].numpy() for epoch in range(80)])
    slopes = rows[:, 14] - rows[:, 5]
    scales = 9 * 3 / 255 / 0.229 / np.abs(slopes)
    assert 20 < (slopes < 0).sum() < 60
    assert 0.45 < scales.min() < 0.7 and 1.5 < scales.max() < 2.3
    places = (rows[:, 9] * 0.229 + 0.485) * 255 / 3  # the source column under the middle of the crop
    assert places.min() < 15 and places.max() > 65


def test_half_of_the_training_images_are_blurred_and_no_target(devkit, monkeypatch):
    train_set = TrainSet(find_pairs(devkit(train=1), "train"), base_size=32, crop_size=(24, 24), seed=0)
    samples = [train_set[epoch, 0] for epoch in range(60)]
    monkeypatch.setattr("common.crops.blur", lambda image, rows, radius: image[:, rows])
    sharp = [train_set[epoch, 0] for epoch in range(60)]
    assert all(torch.equal(target, same) for (_, target), (_, same) in zip(samples, sharp, strict=True))
    assert 15 < sum(not torch.equal(image, other) for (image, _), (other, _) in zip(samples, sharp, strict=True)) < 40


# ---- evaluation


@pytest.mark.parametrize("size", [(32, 48), (35, 51)])
def test_evaluation_gives_the_whole_picture_and_its_ids(devkit, size):
    root = devkit(size=size)
    _, val_set = build_datasets(root, 32, (16, 16), 0)
    image, target = Finished(val_set)[0]
    assert image.shape == (3, *size) and image.dtype == torch.float32
    assert target.shape == size and target.dtype == torch.int64
    pair = find_pairs(root, "val")[0]
    pixels, ids = np.asarray(Image.open(pair.image)), np.asarray(Image.open(pair.label))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(image.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5
    assert target.tolist() == ids.tolist() and (target[:, 0] == 255).all()


@pytest.mark.parametrize(("size", "scaled"), [
    ((30, 60), (40, 80)), ((60, 30), (80, 40)), ((45, 61), (40, 54)), ((40, 40), (40, 40)),
])  # fmt: skip
def test_center_crops_are_the_middle_at_the_scale_of_the_crop(devkit, size, scaled):
    """40 pixels of the middle, after the short side was scaled to 40: int(61 * 40 / 45) is 54."""
    root = devkit(size=size)
    _, val_set = build_datasets(root, 32, (40, 40), 0, eval_protocol="center_crop")
    image, target = Finished(val_set)[0]
    assert image.shape == (3, 40, 40) and target.shape == (40, 40)
    pair = find_pairs(root, "val")[0]
    top, left = (scaled[0] - 40) // 2, (scaled[1] - 40) // 2
    pixels = Image.open(pair.image).resize(scaled[::-1], Image.Resampling.BILINEAR)
    ids = Image.open(pair.label).resize(scaled[::-1], Image.Resampling.NEAREST)
    pixels, ids = (np.asarray(picture)[top : top + 40, left : left + 40] for picture in (pixels, ids))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(image.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5
    assert target.tolist() == ids.tolist()


def test_center_crops_need_not_be_square():
    picture = Image.fromarray(np.arange(20, dtype=np.uint8).repeat(10).reshape(20, 10).T)  # 10 high, column numbers
    assert center_crop(picture, (4, 10), Image.Resampling.NEAREST).size == (10, 4)
    assert np.asarray(center_crop(picture, (4, 10), Image.Resampling.NEAREST))[0].tolist() == list(range(5, 15))


def test_every_validation_picture_counts_once(devkit):
    """All pictures, whatever their number and the batch size: the original drops a rest and looks at one device's."""
    _, val_set = build_datasets(devkit(val=5), 32, (16, 16), 0)

    def constant(images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), NUM_CLASSES, *images.shape[-2:])
        logits[:, 4] = 1
        return logits

    class Constant(torch.nn.Module):
        def forward(self, images):
            return constant(images)

    matrix = ConfusionMatrix(NUM_CLASSES)
    evaluate(Constant(), val_set, matrix, batch_size=2, world=World(torch.device("cpu")), workers=0)
    targets = torch.stack([val_set[index][1] for index in range(5)])
    assert matrix.counts.sum() == (targets != 255).sum() == 5 * 32 * 47
    assert matrix.counts.sum(1).tolist() == [(targets == c).sum().item() for c in range(21)]
    assert matrix.iou()[4].item() == pytest.approx((targets == 4).sum().item() / (5 * 32 * 47))


def test_an_untrained_network_scores_next_to_nothing_on_the_embedded_sample(tmp_path):
    """What the sample teaches is learnt: initial weights find none of it."""
    root = draw("voc", tmp_path / "sample", train_images=1, val_images=4, size=(64, 80))
    torch.manual_seed(0)
    matrix = ConfusionMatrix(NUM_CLASSES)
    _, val_set = build_datasets(root, 64, (64, 64), seed=0, train=False)
    evaluate(build("DynamicUNet"), val_set, matrix, batch_size=1, world=World(torch.device("cpu")), workers=0)
    assert matrix.miou() < 0.1


# ---- the run


def run(root: Path, output: Path, *flags: str) -> list[dict]:
    """One epoch of the preset `tiny`, in this process; returns the logged steps."""
    given = ["--preset=tiny", "--device=cpu", "--workers=0", "--epochs=1", "--log_every_steps=1", "--no_validate"]
    train.main(parse_args(presets, [*given, f"--data_path={root}", f"--output_dir={output}", *flags]))
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def test_a_run_trains_both_groups_at_the_rates_asked_for(devkit, tmp_path):
    flags = ["--lr=0.001", "--encoder_lr_factor=0", "--head_lr_factor=2", "--warmup_steps=2", "--warmup_factor=0.5"]
    torch.manual_seed(0)
    run(devkit(train=8), tmp_path / "run", *flags, "--save_every_steps=1", "--max_steps=2", "--weight_decay=0")
    content = last_checkpoint(tmp_path / "run")
    encoder, heads = content["optimizer"]["param_groups"]
    assert (encoder["initial_lr"], heads["initial_lr"]) == (0.0, pytest.approx(0.002))
    assert heads["lr"] == pytest.approx(0.002)  # the second step is the end of the warm-up
    assert len(encoder["params"]) + len(heads["params"]) == len(list(build("DynamicUNet").parameters()))


def test_checkpoints_every_few_epochs_beside_the_evaluations(devkit, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(train, "save", lambda output, step, *rest: saved.append(step + 1))
    flags = ["--epochs=5", "--eval_every_epochs=5", "--save_every_epochs=2"]
    run(devkit(train=2), tmp_path / "run", *flags)
    assert saved == [2, 4, 5]


@pytest.mark.parametrize(("flags", "message"), [
    (["--crop_size=32", "--device_batch_size=1"], "larger crop or two images"),
    (["--device_batch_size=9"], "8 training images are fewer than the 9"),
    (["--load_from=nowhere.pt"], "no checkpoint .*nowhere.pt"),
    (["--evaluate"], "--evaluate is given and no --checkpoint"),
    (["--dataset=pascal_aug"], "VOCaug/dataset"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_the_start(devkit, tmp_path, flags, message):
    given = ["--preset=tiny", "--device=cpu", f"--data_path={devkit(train=8)}", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(InputError, match=message) as error:
        train.check(parse_args(presets, [*given, *flags]), world_size=1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_mask_is_refused_before_the_start(devkit, tmp_path):
    root = devkit(train=8)
    (root / "VOC2012" / "SegmentationClass" / "2007_000003.png").write_bytes(b"nothing")
    given = ["--preset=tiny", "--device=cpu", f"--data_path={root}", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(InputError, match="2007_000003.png"):
        train.check(parse_args(presets, given), world_size=1)
    train.check(parse_args(presets, [*given, "--no_check_data"]), world_size=1)


def test_steps_of_an_epoch_of_the_full_data_set():
    """1,464 pictures: 366 steps of 4, 45 of 32, 30 of 48."""
    for batch, devices, steps in ((4, 1, 366), (4, 8, 45), (6, 8, 30)):
        sampler = StepSampler(1464, batch, World(torch.device("cpu"), size=devices), 0, 0, 2 * steps)
        epochs = [{epoch for epoch, _ in keys} for keys in sampler]
        assert epochs == [{0}] * steps + [{1}] * steps
