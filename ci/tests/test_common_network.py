"""common/scores/network.py and inputs.py: a trained network in one's own program, and pictures by pattern and list."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import FOLDERS, module
from common.data.colours import picture_to_input
from common.data.decode import open_image
from common.errors import InputError
from common.scores import predict as predict_module
from common.scores.network import code_of
from common.scores.predict import find_images, load, parse_predict_args, predict

SIZES = ((40, 56), (40, 56), (40, 56), (33, 47), (40, 56))  # of the pictures a to e


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, (height, width) in zip("abcde", SIZES, strict=True):
        (folder / ("deep" if name > "c" else "")).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if name > "c" else "") / f"{name}.png")
    return folder


def saved(path: Path, folder: str, **options) -> torch.nn.Module:
    """A network of random weights, in eval mode, and a checkpoint of it."""
    torch.manual_seed(3)
    model = module(folder, "model").build_model(**options).eval()
    content = {"format": "segmentation-zoo-1", "model_class": type(model).__name__, "options": model.options}
    counts = {"steps_done": 1, "best": None, "images_per_step": 1}
    torch.save({**content, **counts, "model": model.state_dict(), "data": None}, path)
    return model


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    path = tmp_path_factory.mktemp("network") / "best.pt"
    return path, saved(path, "BiSeNetv1", backbone="resnet18")


def test_a_network_sees_files_pictures_and_arrays_alike(street, pictures):
    path, model = street
    net = load(path, "cpu")
    assert net.info.class_names[0] == "road"
    file = pictures / "deep" / "d.png"
    with torch.no_grad():
        logits = model(picture_to_input(open_image(file))[None])[0]
    ids = net(file)
    assert ids.dtype == np.uint8 and np.array_equal(ids, logits.argmax(0).numpy()) and len(np.unique(ids)) > 1
    for picture in (str(file), Image.open(file), np.array(Image.open(file))):
        assert np.array_equal(net(picture), ids)
    assert np.allclose(net(file, probabilities=True), logits.softmax(0).numpy(), atol=1e-6)
    several = net([pictures / "a.png", file])
    assert np.array_equal(several[0], net(pictures / "a.png")) and np.array_equal(several[1], ids)
    grey = np.array(Image.open(file).convert("L"))
    assert np.array_equal(net(grey), net(np.stack([grey] * 3, axis=2)))
    for wrong in (np.zeros((3, 4, 5), np.uint8), np.zeros((4, 5, 3)), 7):
        with pytest.raises(InputError if isinstance(wrong, np.ndarray) else TypeError):
            net(wrong)


def test_a_network_that_is_given_squares_answers_at_the_size_of_the_picture(tmp_path, pictures):
    saved(tmp_path / "best.pt", "AttentionUNet", base_channels=4, image_size=32)
    net = load(tmp_path / "best.pt", "cpu")
    chance = net(pictures / "a.png", probabilities=True)
    assert chance.shape == (2, 40, 56) and np.allclose(chance.sum(0), 1, atol=1e-6)
    assert np.array_equal(net(pictures / "a.png"), chance[1] > 0.5)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_gives_what_its_networks_need(folder):
    code = code_of(folder)
    assert code.build_model is module(folder, "model").build_model and code.info is module(folder, "data").INFO


def test_what_cannot_be_loaded_is_said(street, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"does not say of which network it is; give folder=, one of AttentionUNet, "):
        load(tmp_path / "other.pt")
    content = torch.load(street[0], weights_only=True)
    torch.save({**content, "model_class": "os"}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="network os, which no folder here has"):
        load(tmp_path / "foreign.pt")
    for device in ("tpu", "cuda:x"):
        with pytest.raises(InputError, match="is none of auto, cpu"):
            load(street[0], device)
    with pytest.raises(InputError, match="common is not a model's folder"):
        load(street[0], folder="common")


def test_several_pictures_of_one_size_are_one_batch(street, pictures, tmp_path, monkeypatch):
    """Neighbours alone, in the order of the paths; with one load of the network, and the same results."""
    written, shapes = {}, []
    code = code_of("BiSeNetv1")
    for batch_size in (1, 2):
        words = [f"--checkpoint={street[0]}", f"--input={pictures}", f"--output={tmp_path / str(batch_size)}"]
        args = parse_predict_args({}, "", [*words, "--device=cpu", f"--batch_size={batch_size}"])

        def built(*arguments, **options):
            model = code.build_model(*arguments, **options)
            model.register_forward_pre_hook(lambda _, images: shapes.append(tuple(images[0].shape)))
            return model

        built.__annotations__ = code.build_model.__annotations__
        predict(args, built, code.from_reference, code.info)
        written[batch_size] = {path.name: path.read_bytes() for path in (tmp_path / str(batch_size)).rglob("*_ids.png")}
    assert written[1] == written[2] and len(written[1]) == 5
    singles, together = shapes[:5], shapes[5:]
    assert singles == [(1, 3, *size) for size in SIZES]
    assert together == [(2, 3, 40, 56), (1, 3, 40, 56), (1, 3, 33, 47), (1, 3, 40, 56)]

    def no_memory(segmenter, images):
        raise MemoryError if len(images) > 1 else ValueError("a size")

    segmenter = type("S", (), {"see": no_memory, "__call__": lambda self, image: self.see([image])})()
    seen = list(predict_module._all_seen([pictures / "a.png", pictures / "b.png"], segmenter, 2))
    assert [str(error).partition(" cannot")[0] for *_, error in seen] == [
        str(pictures / f"{name}.png") for name in "ab"
    ]


def test_pictures_by_pattern_and_list(pictures, tmp_path, monkeypatch):
    assert [path.name for path, _ in find_images(f"{pictures}/*.png")] == ["a.png", "b.png", "c.png"]
    found = find_images(f"{pictures}/**/*.png")
    assert [str(path.relative_to(root)) for path, root in found] == [
        "a.png",
        "b.png",
        "c.png",
        "deep/d.png",
        "deep/e.png",
    ]
    with pytest.raises(InputError, match="matches 1 files, none of them a picture"):
        find_images(f"{pictures}/d*p")

    chosen = pictures / "chosen.txt"
    chosen.write_text(f"deep/e.png\n\n{pictures / 'a.png'}\ndeep/e.png\n")
    monkeypatch.chdir(tmp_path)
    try:
        found = find_images(os.path.relpath(chosen))
        assert [str(path.relative_to(root)) for path, root in found] == ["deep/e.png", "a.png"]
        chosen.write_text("a.png\nx.png\n")
        with pytest.raises(InputError, match=r"chosen.txt, line 2: there is no file .*x.png"):
            find_images(chosen)
        chosen.write_text("\n")
        with pytest.raises(InputError, match="is empty"):
            find_images(chosen)
    finally:
        chosen.unlink()
