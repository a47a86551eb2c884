"""PASCAL VOC as DynamicUNet reads, augments and scores it."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ci.tests.folders import built, carry_out
from ci.tests.samples import Finished
from common.data.crops import BlurredCrops, WholePictures
from common.data.order import StepRange, StepSampler
from common.data.pairs import check_pairs as check_all
from common.data.pictures import Datasets, Source
from common.data.transforms import Cropping
from common.device.world import World
from common.errors import InputError
from common.record.saving import Saver
from common.samples.layout import draw
from common.scores.evaluate import Evaluation, evaluate
from DynamicUNet import presets
from DynamicUNet.data import INFO, CenterCrops, build_datasets, center_crop, validation_images
from DynamicUNet.model import build_model
from DynamicUNet.voc import CLASS_NAMES, NUM_CLASSES, PALETTE, Pair, find_pairs, label_kind, read_pair


def check_pairs(pairs, decode_images=False):
    check_all(pairs, read_pair, decode_images)


def read_mask(path: Path) -> np.ndarray:
    return label_kind(path).read(path, None).values


def datasets(root: Path, **changes) -> Datasets:
    """Those of the preset `tiny` with these values."""
    values = {**presets.PRESETS["tiny"], "seed": 0, "base_size": 32, "crop_size": (16, 16)}
    return build_datasets(Namespace(**{**values, "data_path": root, **changes}))


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
    train_set, val_set, test_set = datasets(root)
    assert (type(train_set), len(train_set), type(val_set), len(val_set)) == (BlurredCrops, 3, WholePictures, 2)
    assert test_set is None
    assert datasets(root, evaluate=True).train is None
    assert datasets(root, validate=False).val is None
    assert type(datasets(root, eval_protocol="center_crop").val) is CenterCrops
    voc = root / "VOC2012"
    assert find_pairs(root, "val") == [
        Pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png")
        for name in ("2008_000000", "2008_000001")
    ]
    assert validation_images(root) == [pair.image for pair in find_pairs(root, "val")]


def test_train_and_val_together_are_those_of_their_list_or_of_both(augmented):
    """With SBD, the pictures of val keep VOC's masks."""
    both = sorted(find_pairs(augmented, "train") + find_pairs(augmented, "val"))
    assert find_pairs(augmented, "trainval") == both
    more = find_pairs(augmented, "trainval", "pascal_aug")
    assert set(more) == {*find_pairs(augmented, "train", "pascal_aug"), *find_pairs(augmented, "val")}
    write_list(augmented / "VOC2012" / "ImageSets" / "Segmentation" / "trainval.txt", [both[0].image.stem])
    assert find_pairs(augmented, "trainval") == both[:1]


def test_lists_may_be_in_any_order_and_have_blank_lines(devkit):
    root = devkit(train=3)
    path = root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    expected = find_pairs(root, "train")
    path.write_text("\n2007_000002 \r\n2007_000000\n\n2007_000001\n2007_000000")
    assert find_pairs(root, "train") == expected


def test_a_line_is_a_name_whatever_program_has_written_the_list(devkit):
    root = devkit(train=2)
    voc = root / "VOC2012"
    for part, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        (voc / part / f"2007_000001{suffix}").rename(voc / part / f"street view 1{suffix}")
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    for content in (b"\xef\xbb\xbf2007_000000\r\nstreet view 1\r\n", b"2007_000000.jpg\nstreet view 1.JPG\n"):
        path.write_bytes(content)
        assert [pair.image.stem for pair in find_pairs(root, "train")] == ["2007_000000", "street view 1"]


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png"])
def test_pictures_may_have_any_suffix_that_pictures_have(devkit, suffix):
    root = devkit(train=2)
    path = root / "VOC2012" / "JPEGImages" / "2007_000001.jpg"
    path.rename(path.with_suffix(suffix))
    assert find_pairs(root, "train")[1].image == path.with_suffix(suffix)
    path.touch()
    assert find_pairs(root, "train")[1].image == path, "that of the download comes first"


def test_a_list_that_excludes_by_names_with_suffix_excludes_too(augmented):
    """Else pictures that are validated on would be trained on."""
    (augmented / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_text("c.jpg\nd.jpg\n")
    assert [pair.image.stem for pair in find_pairs(augmented, "train", "pascal_aug")] == list("abefg")


@pytest.mark.parametrize(
    ("listed", "there"),
    [("2007_000001 1", "2007_000001.jpg"), ("2007-000001", "2007_000001.jpg"), ("2007_00000", "2007_000000.jpg")],
)
def test_a_name_without_a_file_is_told_with_its_line_and_its_near_twin(devkit, listed, there):
    root = devkit(train=2)
    path = root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text(f"2007_000000\n\n{listed}\n")
    message = rf"1 of 2 listed images .*: {listed}\.jpg \(train\.txt, line 3; there is {there}\); unpack"
    with pytest.raises(InputError, match=message):
        find_pairs(root, "train")


def test_pascal_aug_is_voc_and_sbd_without_the_validation_pictures(augmented):
    voc, sbd = augmented / "VOC2012", augmented / "VOCaug" / "dataset"
    train_set, val_set, _ = datasets(augmented, base_size=8, crop_size=(8, 8), dataset="pascal_aug")
    fine = [Pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png") for name in "abcd"]
    coarse = [Pair(sbd / "img" / f"{name}.jpg", sbd / "cls" / f"{name}.mat") for name in "efg"]
    assert list(train_set.pairs) == fine[:2] + coarse  # no c, no d: they are validated on
    assert list(val_set.pairs) == fine[2:]
    assert find_pairs(augmented, "train") == fine[:2]
    check_pairs(train_set.pairs, decode_images=True)
    cropping = Cropping(base_size=8, crop_size=(8, 12), scales=(1.0, 1.0))
    image, target = Finished(BlurredCrops(Source(coarse, read_pair, INFO), cropping, seed=0))[0, 0]
    assert set(target.unique().tolist()) == {0, 2, 7, 20}
    assert image.shape == (3, 8, 12)


def test_pascal_aug_needs_sbd_for_training_alone(devkit):
    root = devkit()
    assert len(datasets(root, dataset="pascal_aug", evaluate=True).val) == 1
    with pytest.raises(
        InputError, match=r"no folder .*VOCaug/dataset.*img/, cls/, train.txt.*or SegmentationClassAug/ in VOC2012/"
    ):
        find_pairs(root, "train", "pascal_aug")
    (root / "VOCaug" / "dataset" / "img").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no cls/ in .*it holds img"):
        find_pairs(root, "train", "pascal_aug")


def test_masks_in_the_colours_of_voc_are_its_classes(devkit):
    pair = find_pairs(devkit(), "train")[0]
    ids = np.asarray(read_mask(pair.label))
    colours = np.zeros((256, 3), np.uint8)
    colours[:21], colours[255] = PALETTE, (224, 224, 192)
    Image.fromarray(colours[ids]).save(pair.label)
    assert (read_mask(pair.label) == ids).all() and set(np.unique(ids)) == {*range(21), 255}


def test_sbd_as_png_files_is_taken_where_the_others_are_not(augmented):
    voc = augmented / "VOC2012"
    expected = [pair.image.stem for pair in find_pairs(augmented, "train", "pascal_aug")]
    for name in "abcdefg":
        save_mask(voc / "SegmentationClassAug" / f"{name}.png", np.full((8, 12), 3, np.uint8), palette=False)
        save_picture(voc / "JPEGImages" / f"{name}.jpg", np.random.default_rng(1), (8, 12))
    write_list(voc / "ImageSets" / "Segmentation" / "train_aug.txt", list("abcefg"))
    assert find_pairs(augmented, "train", "pascal_aug")[2].label.suffix == ".mat"
    (augmented / "VOCaug").rename(augmented / "away")
    pairs = find_pairs(augmented, "train", "pascal_aug")
    assert [pair.image.stem for pair in pairs] == expected
    assert [int(read_mask(pair.label)[0, 0]) for pair in pairs] == [1, 1, 3, 3, 3]  # the finer masks of VOC stay
    (voc / "SegmentationClass").rename(augmented / "gone")
    assert [int(read_mask(pair.label)[0, 0]) for pair in find_pairs(augmented, "val")] == [3, 3]


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
    with pytest.raises(
        InputError, match=r"train.txt holds paths \(/JPEGImages/2007_000001.jpg /Seg.*such as 2007_000032"
    ):
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
    with pytest.raises(
        InputError,
        match=rf"1 of 3 listed {kind} are not in .*/{part}: {name} \(train.txt, line 2\); unpack",
    ):
        find_pairs(root, "train")


def test_masks_of_other_kinds_are_refused_by_name(devkit, tmp_path):
    pair = find_pairs(devkit(), "train")[0]
    ids = np.asarray(read_mask(pair.label)).copy()
    save_mask(pair.label, ids, palette=False)  # grey values that are ids
    assert np.array_equal(np.asarray(read_mask(pair.label)), ids)
    Image.fromarray(ids).convert("RGB").save(pair.label)
    with pytest.raises(InputError, match=rf"{pair.label} holds \d+ colours of no class, \(\d+, \d+, \d+\) for one"):
        check_pairs([pair])
    Image.fromarray(ids > 0).save(pair.label)  # of one bit: a mask, or ids
    with pytest.raises(InputError, match=f"{pair.label} holds values of one bit"):
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
    for decode_images in (False, True):
        with pytest.raises(InputError, match=f"cannot decode the image {pair.image}.*end mark"):
            check_pairs([pair], decode_images)
    pair.image.write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"cannot decode the image {pair.image}"):
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
    root = devkit()
    for low, high in ((0.0, 2.0), (2.0, 0.5)):
        with pytest.raises(InputError, match="--min_scale .* 0 < min <= max"):
            datasets(root, min_scale=low, max_scale=high)
    with pytest.raises(InputError, match="--min_scale 0.01 of --base_size 32 is less than a pixel"):
        datasets(root, min_scale=0.01)


# ---- training samples: test_common_crops.py has more about them


def test_the_numbers_reach_the_training_set(devkit):
    numbers = {"base_size": 40, "crop_size": (16, 24), "min_scale": 0.75, "max_scale": 1.5, "seed": 7}
    train_set = datasets(devkit(), **numbers).train
    assert (train_set.cropping, train_set.seed) == (Cropping(40, (16, 24), (0.75, 1.5)), 7)


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (9, 70)])
@pytest.mark.parametrize("crop_size", [(16, 16), (80, 80), (24, 40)])
def test_training_samples_are_crops_of_float_images_and_integer_targets(devkit, size, crop_size):
    train_set = Finished(datasets(devkit(size=size), crop_size=crop_size).train)
    seen = set()
    for epoch in range(10):
        image, target = train_set[epoch, epoch % 2]
        assert image.shape == (3, *crop_size) and image.dtype == torch.float32
        assert target.shape == crop_size and target.dtype == torch.int64
        assert image.isfinite().all() and image.min() > -2.2 and image.max() < 2.7  # of black and white, normalised
        seen |= set(target.unique().tolist())
    assert seen <= {*range(21), 255} and len(seen) > 10


# ---- evaluation


@pytest.mark.parametrize("size", [(32, 48), (35, 51)])
def test_evaluation_gives_the_whole_picture_and_its_ids(devkit, size):
    root = devkit(size=size)
    image, target = Finished(datasets(root).val)[0]
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
    image, target = Finished(datasets(root, crop_size=(40, 40), eval_protocol="center_crop").val)[0]
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
    val_set, world = datasets(devkit(val=5)).val, World(torch.device("cpu"))

    class Constant(torch.nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), NUM_CLASSES, *images.shape[-2:])
            logits[:, 4] = 1
            return logits

    matrix = evaluate(Constant(), val_set, val_set.metric(world), Evaluation(world, batch_size=2))
    targets = torch.stack([val_set[index][1] for index in range(5)])
    assert matrix.counts.sum() == (targets != 255).sum() == 5 * 32 * 47
    assert matrix.counts.sum(1).tolist() == [(targets == c).sum().item() for c in range(21)]
    assert matrix.iou()[4].item() == pytest.approx((targets == 4).sum().item() / (5 * 32 * 47))


# ---- the run


def flags_of(root: Path, output: Path) -> dict:
    return {"preset": "tiny", "device": "cpu", "workers": 0, "data_path": root, "output_dir": output}


def test_a_run_trains_both_groups_at_the_rates_asked_for(devkit, tmp_path):
    rates = {"lr": 0.001, "encoder_lr_factor": 0, "head_lr_factor": 2, "warmup_steps": 2, "warmup_factor": 0.5}
    carry_out("DynamicUNet", "--no_validate", **flags_of(devkit(train=8), tmp_path / "run"), **rates, max_steps=2)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    encoder, heads = content["optimizer"]["param_groups"]
    assert (encoder["initial_lr"], heads["initial_lr"]) == (0.0, pytest.approx(0.002))
    assert heads["lr"] == pytest.approx(0.002)  # the second step is the end of the warm-up
    parameters = list(build_model(backbone=presets.PRESETS["tiny"]["backbone"]).parameters())
    assert len(encoder["params"]) + len(heads["params"]) == len(parameters)


def test_checkpoints_every_few_epochs_beside_the_evaluations(devkit, tmp_path, monkeypatch):
    saved = []
    write = Saver._write
    monkeypatch.setattr(
        Saver, "_write", lambda saver, name, state: (saved.append(state["steps_done"]), write(saver, name, state))
    )
    epochs = {"epochs": 5, "eval_every_epochs": 5, "save_every_epochs": 2}  # of one step each
    carry_out("DynamicUNet", "--no_validate", **flags_of(devkit(train=2), tmp_path / "run"), **epochs)
    assert saved == [2, 4, 5]


@pytest.mark.parametrize(("flags", "message"), [
    (["--crop_size=32", "--device_batch_size=1"], "larger crop or two images"),
    (["--device_batch_size=9"], "8 training images are fewer than the 9"),
    (["--load_from=nowhere.pt"], "no checkpoint .*nowhere.pt"),
    (["--evaluate"], "--evaluate is given without --checkpoint"),
    (["--dataset=pascal_aug"], "VOCaug/dataset"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_the_start(devkit, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as error:
        built("DynamicUNet", *flags, **flags_of(devkit(train=8), tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_mask_is_refused_before_the_start(devkit, tmp_path):
    root = devkit(train=8)
    (root / "VOC2012" / "SegmentationClass" / "2007_000003.png").write_bytes(b"nothing")
    flags = flags_of(root, tmp_path / "run")
    with pytest.raises(InputError, match="2007_000003.png"):
        built("DynamicUNet", **flags)
    built("DynamicUNet", "--no_check_data", **flags)


def test_steps_of_an_epoch_of_the_full_data_set():
    """1,464 pictures: 366 steps of 4, 45 of 32, 30 of 48."""
    for batch, devices, steps in ((4, 1, 366), (4, 8, 45), (6, 8, 30)):
        world = World(torch.device("cpu"), size=devices)
        sampler = StepSampler(1464, StepRange(batch, seed=0, first_step=0, total_steps=2 * steps), world)
        epochs = [{epoch for epoch, _ in keys} for keys in sampler]
        assert epochs == [{0}] * steps + [{1}] * steps
