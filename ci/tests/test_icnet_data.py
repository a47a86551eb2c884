import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.samples import Finished
from common.cityscapes import NUM_CLASSES, find_pairs, read_pair
from common.crops import BlurredCrops, WholePictures
from common.device import World
from common.errors import InputError
from common.evaluate import evaluate
from common.metrics import ConfusionMatrix
from common.sample import draw_cityscapes
from ICNet.data import build_datasets
from ICNet.model import build_model

# label id -> train id, by hand; every other id is ignored
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAIN_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def TrainSet(pairs, *sizes, **options):
    return Finished(BlurredCrops(pairs, read_pair, *sizes, **options))


def EvalSet(pairs):
    return Finished(WholePictures(pairs, read_pair))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_splits_have_their_pairs_and_only_what_is_asked_for(tiny_cityscapes):
    root = tiny_cityscapes(train=3, val=2)
    train_set, val_set = build_datasets(root, base_size=32, crop_size=(16, 16), seed=0)
    assert (len(train_set), len(val_set)) == (3, 2)
    assert build_datasets(root, 32, (16, 16), 0, train=False)[0] is None
    assert build_datasets(root, 32, (16, 16), 0, val=False)[1] is None


def test_evaluation_alone_needs_no_training_split(tiny_cityscapes):
    root = tiny_cityscapes(train=0, val=1)
    assert len(build_datasets(root, 32, (16, 16), 0, train=False)[1]) == 1
    with pytest.raises(InputError, match="no split 'train'"):
        build_datasets(root, 32, (16, 16), 0)


@pytest.mark.parametrize("size", [(32, 48), (9, 70)])
@pytest.mark.parametrize("crop_size", [(16, 16), (80, 48)])
def test_training_samples_are_crops_of_float_images_and_integer_targets(tiny_cityscapes, size, crop_size):
    train_set = TrainSet(find_pairs(tiny_cityscapes(size=size), "train"), base_size=32, crop_size=crop_size, seed=0)
    seen = set()
    for epoch in range(10):
        image, target = train_set[epoch, epoch % 2]
        assert image.shape == (3, *crop_size) and image.dtype == torch.float32
        assert target.shape == crop_size and target.dtype == torch.int64
        assert image.isfinite().all() and image.min() > -2.2 and image.max() < 2.7  # of black and white, normalised
        seen |= set(target.unique().tolist())
    assert seen <= {*range(19), 255}
    assert len(seen) > 10


def test_the_index_chooses_the_picture(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(train=3), "train")
    for grey, pair in zip((0, 100, 200), pairs, strict=True):
        Image.new("RGB", (48, 32), (grey,) * 3).save(pair.image)
    train_set = TrainSet(pairs, base_size=32, crop_size=(8, 8), seed=0)
    for grey, index in ((200, 2), (0, 0), (100, 1)):
        assert train_set[0, index][0][0].mean().item() == pytest.approx((grey / 255 - 0.485) / 0.229, abs=0.02)


def test_what_is_padded_is_ignored_and_black(tiny_cityscapes):
    train_set = TrainSet(find_pairs(tiny_cityscapes(size=(32, 48)), "train"), base_size=16, crop_size=(80, 80), seed=0)
    image, target = train_set[0, 0]
    assert (target[40:] == 255).all() and (target[:, 64:] == 255).all()
    black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert torch.allclose(image[:, 79, 79], black, atol=1e-5)


def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(), "train")
    train_set = TrainSet(pairs, 32, (24, 24), seed=5)
    first = train_set[3, 1]
    np.random.default_rng(0).random(5)
    torch.rand(5)
    assert equal(train_set[3, 1], first)  # not on what was drawn before
    assert equal(TrainSet(pairs, 32, (24, 24), seed=5)[3, 1], first)
    for seed, key in ((5, (4, 1)), (6, (3, 1)), (5, (3, 0)), (5, (1, 1))):
        assert not equal(TrainSet(pairs, 32, (24, 24), seed)[key], first)


def test_a_later_epoch_is_no_shifted_copy_of_an_earlier_one(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(train=1), "train") * 4  # one picture under four indices
    train_set = TrainSet(pairs, 32, (24, 24), seed=0)
    samples = [train_set[epoch, index][0] for epoch in range(4) for index in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(samples) for b in samples[:i])


@pytest.mark.parametrize("size", [(32, 48), (35, 51)])
def test_evaluation_gives_the_whole_picture_and_the_mapped_label(tiny_cityscapes, size):
    pair = find_pairs(tiny_cityscapes(size=size), "val")[0]
    image, target = EvalSet([pair])[0]
    assert image.shape == (3, *size) and image.dtype == torch.float32
    assert target.shape == size and target.dtype == torch.int64

    pixels, label_ids = np.asarray(Image.open(pair.image)), np.asarray(Image.open(pair.label))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(image.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5
    assert target.tolist() == [[TRAIN_IDS.get(value, 255) for value in row] for row in label_ids.tolist()]


def test_images_in_training_are_flipped_scaled_and_blurred(tiny_cityscapes):
    root = tiny_cityscapes(train=1, size=(40, 80))
    pair = find_pairs(root, "train")[0]
    columns = np.arange(80, dtype=np.uint8).repeat(3).reshape(1, 80, 3).repeat(40, 0)
    Image.fromarray(columns * 3).save(pair.image)  # brighter from left to right
    train_set = TrainSet([pair], base_size=40, crop_size=(20, 20), seed=0)
    slopes = np.array(
        [(image[0, 10, 14] - image[0, 10, 5]).item() for image, _ in (train_set[e, 0] for e in range(80))]
    )
    per_source_pixel = 3 / 255 / 0.229
    scales = 9 * per_source_pixel / np.abs(slopes)
    assert 20 < (slopes < 0).sum() < 60
    assert 0.45 < scales.min() < 0.7 and 1.5 < scales.max() < 2.2


def test_half_of_the_training_images_are_blurred_and_no_target(tiny_cityscapes, monkeypatch):
    train_set = TrainSet(find_pairs(tiny_cityscapes(train=1), "train"), base_size=32, crop_size=(24, 24), seed=0)
    samples = [train_set[epoch, 0] for epoch in range(60)]
    monkeypatch.setattr("common.crops.blur", lambda image, rows, radius: image[:, rows])
    sharp = [train_set[epoch, 0] for epoch in range(60)]
    assert all(torch.equal(target, same) for (_, target), (_, same) in zip(samples, sharp, strict=True))
    assert 15 < sum(not torch.equal(image, other) for (image, _), (other, _) in zip(samples, sharp, strict=True)) < 40


def test_an_untrained_network_scores_next_to_nothing_on_the_embedded_sample(tmp_path):
    """What the sample teaches is learnt: initial weights find none of it."""
    root = draw_cityscapes(tmp_path / "sample", train_images=1, val_images=6, size=(128, 256))
    _, val_set = build_datasets(root, base_size=128, crop_size=(64, 64), seed=0, train=False)
    torch.manual_seed(0)
    matrix = ConfusionMatrix(NUM_CLASSES)
    evaluate(build_model(), val_set, matrix, batch_size=1, world=World(torch.device("cpu")), workers=0)
    assert matrix.miou() < 0.1


def test_scales_that_are_no_range_are_refused(tiny_cityscapes):
    for scales in ((0.0, 2.0), (2.0, 0.5)):
        with pytest.raises(InputError, match="--min_scale .* 0 < min <= max"):
            build_datasets(tiny_cityscapes(), base_size=32, crop_size=(16, 16), seed=0, scales=scales)


def test_a_label_of_another_size_is_refused_when_it_is_read(tiny_cityscapes):
    pair = find_pairs(tiny_cityscapes(), "val")[0]
    Image.open(pair.label).crop((0, 0, 10, 10)).save(pair.label)
    with pytest.raises(InputError, match="must have the same size"):
        EvalSet([pair])[0]
