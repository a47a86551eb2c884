"""common/tools/: benchmark.py, timing.py, timed_training.py, peak.py, and plain_data.py, the yardstick itself."""

import ctypes
import functools
import json
import os
import shutil
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ci.tests.common_workers import world
from ci.tests.folders import FOLDERS, ROOT, carry_out, module
from ci.tests.runs import as_if_started
from common.errors import InputError
from common.record.log import RunLog
from common.samples.layout import draw
from common.step.amp import Amp
from common.tools import timed_training, timing
from common.tools.benchmark import main
from common.tools.peak import PEAK_TFLOPS, peak_tflops, training_operations
from common.tools.plain_data import blurred_crop, distorted_crop, lesion, plain_sample
from common.tools.timing import figure, held, ratio, timed

pytestmark = pytest.mark.usefixtures("narrow")

TINY = ["--preset=tiny", "--device=cpu", "--workers=0", "--repetitions=3", "--warmup=1"]
FACTS = {"benchmark", "model", "preset", "given", "device", "threads", "torch", "precision", "batch", "size", "clock"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data(folder) -> the flag for 8 training and 3 validation pictures of 64x96 pixels in the folder's layout."""
    root = tmp_path_factory.mktemp("benchmark")

    def drawn(folder: str) -> str:
        layout = module(folder, "presets").LAYOUT
        return f"--data_path={draw(layout, root / layout, train_images=8, val_images=3, size=(64, 96))}"

    return drawn


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


# ---- the numbers


def test_figures_by_hand():
    seconds = [0.1, 0.4, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
    found = figure(seconds, images=12)
    expected = {"median_ms": 600, "p10_ms": 200, "p90_ms": 1000, "p95_ms": 1050, "p99_ms": 1090}
    assert found == pytest.approx({**expected, "images_per_second": 20})
    # of pairs: 2, 2, 4, 1, 2, 2, 2, 2, 2, 2, 2
    slower = [0.2, 0.8, 0.8, 0.3, *(2 * value for value in seconds[4:])]
    assert ratio(slower, seconds) == pytest.approx({"median": 2, "p10": 2, "p90": 2})
    assert ratio([3.0], [2.0]) == pytest.approx({"median": 1.5, "p10": 1.5, "p90": 1.5})


def test_the_clock_waits_for_the_device_at_both_ends(monkeypatch):
    happened = []
    monkeypatch.setattr(timing, "synchronize", lambda world: happened.append("wait"))
    clock = SimpleNamespace(perf_counter=lambda: happened.append("clock") or float(len(happened)))
    monkeypatch.setattr(timing, "time", clock)
    seconds = timed(lambda: happened.append("work"), world())
    assert happened == ["wait", "clock", "work", "wait", "clock"]
    assert seconds == 3.0


def test_operations_of_a_training_step_by_hand():
    class Network(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, width, 3, padding=1, stride=2), nn.BatchNorm2d(width)
            self.last, self.auxiliary = nn.Conv2d(width, 5, 1), nn.Conv2d(width, 5, 1)

        def forward(self, images):
            features = self.norm(self.first(images))
            return (self.last(features), self.auxiliary(features)) if self.training else self.last(features)

    pixels, first, last = 4 * 3, 4 * 27, 5 * 4
    # forward; gradients of the weights as much again; gradients of the features, which the images do not need
    expected = 2 * pixels * ((first + 2 * last) + (first + 2 * last) + 2 * last)
    assert training_operations(Network, {"width": 4}, (8, 6)) == expected


@pytest.mark.parametrize(
    "device, precision, expected",
    [
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200 NVL", "tf32", 417.5),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "fp16", None),  # a part of one
        ("NVIDIA GeForce RTX 3090", "fp32", 35.6),
        ("NVIDIA GeForce RTX 3090 Ti", "fp32", None),  # another chip
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp16", None),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("AMD EPYC (2 cores)", "fp32", None),
    ],
)
def test_peak_rates_are_those_of_the_device_alone(device, precision, expected):
    assert peak_tflops(device, precision) == expected


def test_peak_rates_are_without_sparsity():
    """Half precision is twice TF32 on every tensor core that has both at full rate."""
    for rates in PEAK_TFLOPS.values():
        assert (
            rates["fp16"]
            == rates.get("bf16", rates["fp16"])
            >= rates.get("tf32", 0)
            >= rates["fp32"] * ("tf32" in rates)
        )
        if "tf32" in rates:
            assert rates["fp16"] == pytest.approx(2 * rates["tf32"], rel=0.02)


# ---- the commands


def test_training_runs_the_folders_loop_and_the_plain_step_by_turns(monkeypatch, tmp_path, data, capsys):
    order = []
    loop_step, plain_training = Amp.step, timed_training.plain_training

    def ours(self, loss):
        order.append("ours")
        return loop_step(self, loss)

    def plain(*arguments):
        step = plain_training(*arguments)

        def counted(images, target):
            order.append("plain")
            assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32
            assert target.shape == (2, 64, 64) and set(target.unique().tolist()) == {*range(19), 255}
            return step(images, target)

        return counted

    monkeypatch.setattr(Amp, "step", ours)
    monkeypatch.setattr(timed_training, "plain_training", plain)
    asked = ["--steps=6", "--warmup=2", f"--json={tmp_path / 'result.json'}"]
    result = main(["train", "--model=ICNet", *TINY, data("ICNet"), *asked])
    # warm-up of each, two steps that are counted, three repetitions of two steps by turns, and one with a checkpoint
    assert order == ["ours"] * (2 + 2) + ["plain"] * 2 + (["ours"] * 2 + ["plain"] * 2) * 3 + ["ours"]
    assert result.keys() >= FACTS and result["steps_per_repetition"] == 2 and result["operators_per_step"] > 500
    ours, plain = (result["figures"][name] for name in ("ours", "plain"))
    assert ours["images_per_second"] == pytest.approx(2 * 2 * 1000 / ours["median_ms"])
    assert set(result["ratios"]) == {"plain / ours"}
    assert result["tflops"] == pytest.approx(ours["images_per_second"] * result["gflops_per_image"] / 1000)
    assert "utilisation" not in result  # nobody states the peak of this processor
    assert result["notes"] == "initial weights: random"
    assert result["precision"] == "fp32" and result["batch"] == 2 and result["size"] == [64, 64]
    assert list(result["held"]) == ["after 2 steps", "after 6 steps"]
    assert json.loads((tmp_path / "result.json").read_text())["figures"] == result["figures"]
    shown = capsys.readouterr().out
    assert f"plain / ours: {result['ratios']['plain / ours']['median']:.2f} (" in shown
    assert "step 2/" not in shown  # the lines of the run itself


def test_mixed_precision_is_beside_the_plain_step_in_float32_and_under_autocast(monkeypatch, data):
    plain_training, dtypes = timed_training.plain_training, []

    def plain(model, training_loss, args, dtype):
        dtypes.append(dtype)
        return plain_training(model, training_loss, args, dtype)

    monkeypatch.setattr(timed_training, "plain_training", plain)
    result = main(["train", "--model=ICNet", *TINY, data("ICNet"), "--amp", "--amp_dtype=bf16"])
    assert dtypes == [None, torch.bfloat16]
    assert list(result["figures"]) == ["ours", "plain", "plain, autocast"]
    assert set(result["ratios"]) == {"plain / ours", "plain, autocast / ours"}
    assert result["precision"] == "bf16"


def test_the_time_of_a_step_is_its_own(monkeypatch, data):
    """A clock that moves in steps alone: by one second in ours, by three in the plain one, by five between batches."""
    now = SimpleNamespace(seconds=0.0)
    still = SimpleNamespace(perf_counter=lambda: now.seconds, strftime=time.strftime)
    for module_with_a_clock in (timing, timed_training):
        monkeypatch.setattr(module_with_a_clock, "time", still)

    def passes(seconds):
        now.seconds += seconds

    monkeypatch.setattr(Amp, "step", lambda self, loss: passes(1.0))
    monkeypatch.setattr(timed_training, "plain_training", lambda *_: lambda images, target: passes(3.0))
    result = main(["train", "--model=ICNet", *TINY, data("ICNet"), "--steps=6"])
    assert result["figures"]["ours"] == pytest.approx(figure([2.0], images=4))
    assert result["figures"]["plain"] == pytest.approx(figure([6.0], images=4))
    assert result["ratios"]["plain / ours"]["median"] == pytest.approx(3)

    real = timed_training.batches
    monkeypatch.setattr(timed_training, "batches", lambda *args: (passes(5.0) or item for item in real(*args)))
    monkeypatch.setattr(timed_training, "plain_training", None)
    fed = main(["train", "--model=ICNet", *TINY, data("ICNet"), "--loader"])
    assert set(fed["figures"]) == {"ours"} and "ratios" not in fed
    assert fed["loader"]["data_wait_share"] == pytest.approx(5 / 6)
    alone = main(["train", "--model=ICNet", *TINY, data("ICNet"), "--no_plain"])
    assert set(alone["figures"]) == {"ours"}


def test_the_memory_of_an_accelerator_is_told_for_each_form_alone(monkeypatch):
    """A device that counts: 5 GiB at most in our steps, then 7 in the plain ones, while 3 GiB of ours stay there."""
    gib = 2**30
    peaks, asked = iter((5 * gib, 7 * gib)), []
    npu = SimpleNamespace(
        reset_peak_memory_stats=lambda device: asked.append("reset"),
        max_memory_allocated=lambda device: asked.append("peak") or next(peaks),
        memory_allocated=lambda device: 3 * gib,
        synchronize=lambda device: None,
    )
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    monkeypatch.setattr(timed_training, "plain_training", lambda *_: lambda *_: asked.append("step"))
    model = SimpleNamespace(training_loss=lambda outputs, target: {})
    folder = SimpleNamespace(
        args=None, network=lambda world: None, module=lambda name: model, taken_by=lambda function: {}
    )
    clock = timed_training._TrainingClock(folder, SimpleNamespace(warmup=3))
    clock.world = SimpleNamespace(device=SimpleNamespace(type="npu"))
    clock._measure_memory("ours")
    clock._measure_memory("ours", ends=True)
    clock._plain_steps("plain", None, [(torch.zeros(gib // 2048), torch.zeros(gib // 2048))])  # two MiB each
    assert asked == ["reset", "peak", "step", "reset", "step", "step", "peak"]
    assert clock.memory_gib == pytest.approx({"ours": 5, "plain": 7 - 3 + 4 / 1024})


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_model_is_trained_fed_from_its_data_set(folder, data, tmp_path, capsys):
    kept = tmp_path / "new"
    result = main(["train", f"--model={folder}", *TINY, data(folder), "--loader", f"--cache={kept}"])
    assert f"cache {kept}: 0 pictures are there, 8 (" in capsys.readouterr().out
    assert len(list(kept.glob("*.pair"))) == 8
    assert 0 <= result["loader"]["data_wait_share"] <= 1
    assert set(result["figures"]) == {"ours"}
    assert result["given"]["data_path"] == data(folder).partition("=")[2]


@pytest.mark.parametrize("folder", FOLDERS)
def test_data_of_every_model_against_the_plain_pipeline(folder, data, tmp_path):
    result = main(["data", f"--model={folder}", *TINY, data(folder), "--images=3", f"--cache={tmp_path / 'new'}"])
    assert result.keys() >= FACTS and result["threads"] == 1
    figures = result["figures"]
    assert set(figures) == {
        "plain", "ours", "ours: host", "ours: device", "ours, cached", "ours, cached: host", "ours, cached: device"
    }  # fmt: skip
    for name, row in figures.items():
        assert row["images_per_second"] == pytest.approx(3 * 1000 / row["median_ms"]), name
    assert figures["ours"]["median_ms"] >= max(figures[f"ours: {part}"]["p10_ms"] for part in ("host", "device"))
    assert set(result["ratios"]) == {"plain / ours", "plain / ours, cached"}
    assert result["loader"]["workers"] == 0 and result["loader"]["images_per_second"] > 0
    assert len(list(tmp_path.rglob("*.pair"))) == 8  # three of eight pictures a repetition, in turn


@pytest.mark.parametrize("folder", FOLDERS)
def test_evaluation_and_prediction_of_every_model(folder, data, monkeypatch, tmp_path):
    seen, searches = [], []
    build = module(folder, "model").build_model

    @functools.wraps(build)
    def watched(*arguments, **options):
        network = build(*arguments, **options)
        network.register_forward_pre_hook(lambda network, images: seen.append(images[0].shape))
        network.register_forward_pre_hook(lambda *_: searches.append(torch.backends.cudnn.benchmark))
        return network

    monkeypatch.setattr(module(folder, "model"), "build_model", watched)
    argv = [f"--model={folder}", *TINY, data(folder)]
    result = main(["eval", *argv, "--images=2", "--eval_batch_size=1", f"--cache={tmp_path / 'new'}"])
    assert set(result["figures"]) == {"with decoding", "decoding alone", "network alone"}
    assert result["decoding_share"] > 0
    # two pictures and one batch, four times, and once for the count of operations
    assert len(seen) == 4 * 3 + 1 and all(len(shape) == 4 and shape[0] == 1 for shape in seen)
    assert len(list(tmp_path.glob("new/*.pair"))) == 2 and all(searches)
    seen.clear()
    searches.clear()
    result = main(["predict", *argv, "--images=2"])
    assert set(result["figures"]) == {"file to mask", "picture to mask"}
    assert result["decoding_share"] < 1 and result["batch"] == 2
    for row in result["figures"].values():
        assert row["images_per_second"] == pytest.approx(2 * 1000 / row["median_ms"])
    # two at a time, four times, and one for the count of operations
    assert [shape[0] for shape in seen] == 8 * [2] + [1] and not any(searches)
    assert result["data"].endswith(("of 64 x 96", "of 96 x 64"))


@pytest.mark.parametrize("what", ["data", "train", "eval"])
def test_a_cache_that_cannot_be_used_is_refused_as_by_the_training(what, data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--cache .*file cannot be written to .it is a file.; give another folder"):
        main([what, "--model=ICNet", *TINY, data("ICNet"), "--loader", f"--cache={tmp_path / 'file'}"])


def test_decoding_is_not_timed_for_reading_the_cache(data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    with pytest.raises(InputError, match="the cache .* cannot take more; free some space on its disk and start again"):
        main(["data", "--model=ICNet", *TINY, data("ICNet")])


@pytest.mark.parametrize(
    "argv, words",
    [
        (["train", "--model=NoNet"], "NoNet"),
        (["train", "--model=ICNet", "--repetitions=0"], "--repetitions 0: give at least 1"),
        (["train", "--model=ICNet", "--nosuch=1"], "--nosuch"),
        (["eval", "--model=ICNet", "--compile"], "--compile and --cuda_graph are of the training step; eval has none"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line(argv, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and words in said


def test_input_that_cannot_be_timed_is_refused_in_one_line():
    with pytest.raises(InputError, match="^--input /nowhere.png: no such file[^\n]*$"):
        main(["predict", "--model=ICNet", "--input=/nowhere.png"])
    script = ROOT / "common" / "tools" / "benchmark.py"
    done = as_if_started(script, "data", "--model=ICNet", "--data_path=/nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no folder /nowhere" in done.stderr, done.stderr


# ---- a long run


def children() -> int:
    """Processes whose parent this one is."""
    parents = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.append(int(path.read_text().rpartition(")")[2].split()[1]))
        except OSError:  # it has ended meanwhile
            continue
    return parents.count(os.getpid())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_what_a_process_holds_is_counted():
    before = held()
    file = open(os.devnull)  # noqa: SIM115
    with subprocess.Popen(["sleep", "60"]) as child:
        there = held()
        child.kill()
    file.close()
    assert there.open_files > before.open_files and there.processes == before.processes + 1 == children() + 1
    assert held()[1:] == before[1:]


class Mallinfo(ctypes.Structure):
    """What mallinfo2(3) tells of the C library's allocator."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def live_bytes() -> int:
    """Memory that is in use. Unlike what the process holds, it shows small leaks: they fill what was freed before."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    found = mallinfo()
    return found.uordblks + found.hblkhd  # small blocks, and those with a mapping of their own


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer")
def test_memory_files_and_processes_of_a_long_run_do_not_grow(data, tmp_path, monkeypatch):
    """Twenty-four steps with six evaluations, each with workers, a checkpoint, pictures and lines of its own."""
    found = []
    restart_clock = RunLog.restart_clock

    def watched(self):
        found.append((live_bytes(), len(os.listdir("/proc/self/fd")), children()))
        restart_clock(self)

    monkeypatch.setattr(RunLog, "restart_clock", watched)
    argv = ["--preset=tiny", data("ICNet"), "--device=cpu", "--workers=1", "--log_every_steps=1"]
    result = carry_out("ICNet", *argv, epochs=6, max_steps=24, output_dir=tmp_path / "run")
    assert result["steps"] == 24
    once_in_each_epoch = found[:: len(found) // 6]
    first, last = once_in_each_epoch[2], once_in_each_epoch[-1]  # the first epochs make what later ones use again
    assert last[1:] == first[1:]
    assert last[0] - first[0] < 1 << 19  # in three epochs


# ---- the plain pipelines


def blocks(folder: Path, size: tuple[int, int]) -> tuple[Path, Path]:
    """A picture whose colours tell its classes 1 to 6, in blocks of 40 pixels, and its label."""
    rows, columns = np.indices(size) // 40
    ids = ((rows + 2 * columns) % 6 + 1).astype(np.uint8)
    files = folder / "image.png", folder / "label_gtFine_labelTrainIds.png"
    Image.fromarray(np.repeat(40 * ids[..., None], 3, axis=2)).save(files[0])
    Image.fromarray(ids).save(files[1])
    return files


STREET = {"base_size": 120, "crop_size": (96, 160), "scales": (0.5, 2.0)}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def grey_levels(image: np.ndarray, mean=MEAN, std=STD) -> np.ndarray:
    """[3, H, W] normalised -> 0 to 255."""
    return (image * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * 255


@pytest.mark.parametrize("seed", range(8))
def test_a_plain_blurred_crop_keeps_picture_and_label_together(tmp_path, seed):
    image, target = blurred_crop(*blocks(tmp_path, (120, 240)), np.random.default_rng(seed), **STREET)
    assert (image.shape, image.dtype) == ((3, 96, 160), np.float32)
    assert (target.shape, target.dtype) == ((96, 160), np.int64)
    inside = target > 0  # the padding has the id 0, and is black
    errors = np.abs(grey_levels(image) - 40 * target)
    assert np.median(errors[:, inside]) < 1 and np.mean(errors[:, inside] < 20) > 0.75
    assert np.all(grey_levels(image)[:, ~inside] < 20) or np.mean(~inside) < 0.05


@pytest.mark.parametrize("seed", range(8))
def test_a_plain_distorted_crop_pads_last_and_keeps_grey_grey(tmp_path, seed):
    options = {**STREET, "cat_max_ratio": 0.75}
    image, target = distorted_crop(*blocks(tmp_path, (120, 240)), np.random.default_rng(seed), **options)
    assert (image.shape, image.dtype) == ((3, 96, 160), np.float32)
    assert (target.shape, target.dtype) == ((96, 160), np.int64)
    padding = target == 255
    assert np.all(image[:, padding] == 0)  # after normalisation
    assert set(np.unique(target)) <= {1, 2, 3, 4, 5, 6, 255}
    levels = grey_levels(image)[:, ~padding]
    assert np.ptp(levels, axis=0).max() < 0.01  # hue and saturation of grey do not change
    rising = [np.median(levels[0, target[~padding] == value]) for value in np.unique(target[~padding])]
    assert rising == sorted(rising)  # brightness and contrast keep the order
    counts = np.bincount(target[~padding])
    assert counts.max() < 0.75 * counts.sum()


def test_plain_distortions_do_something_to_colours(tmp_path):
    files = blocks(tmp_path, (120, 240))
    Image.new("RGB", (240, 120), (200, 80, 40)).save(files[0])
    options = {**STREET, "scales": (1.0, 1.0), "cat_max_ratio": 0.75}
    colours = {
        tuple(np.round(grey_levels(distorted_crop(*files, np.random.default_rng(seed), **options)[0])[:, 5, 5]))
        for seed in range(64)
    }
    assert len(colours) > 40 and (200, 80, 40) in colours  # one in thirty-two changes nothing


@pytest.mark.parametrize("probability, size", [(0.0, 64), (1.0, 64), (1.0, 224)])
def test_a_plain_lesion_keeps_picture_and_mask_together(tmp_path, probability, size):
    rows, columns = np.indices((150, 200))
    mask = (((rows - 75) ** 2 + (columns - 100) ** 2 < 40**2) * 255).astype(np.uint8)
    picture = np.repeat(np.where(mask[..., None] > 0, 60, 200).astype(np.uint8), 3, axis=2)
    files = tmp_path / "image.png", tmp_path / "mask.png"
    Image.fromarray(picture).save(files[0])
    Image.fromarray(mask).save(files[1])
    for seed in range(4):
        image, target = lesion(*files, np.random.default_rng(seed), size, probability)
        assert (image.shape, target.shape) == ((3, size, size), (size, size))
        assert (
            image.dtype == target.dtype == np.float32 and image.min() >= -1 and 0 <= target.min() <= target.max() <= 1
        )
        levels = grey_levels(image, [0.5] * 3, [0.5] * 3).mean(axis=0)
        centre = slice(size * 7 // 16, size * 9 // 16)
        assert np.all(target[centre, centre] == 1) and np.abs(levels[centre, centre] - 60).max() < 40
        if probability == 0:
            assert np.abs(levels[target == 0] - 200).max() < 2
        else:
            assert np.median(np.abs(levels[target == 0] - 200)) < 80


def test_the_layout_and_the_values_choose_the_plain_pipeline():
    street = Namespace(base_size=1, crop_size=(2, 3), min_scale=0.25, max_scale=4.0)
    assert plain_sample("voc", street).func is blurred_crop
    assert plain_sample("cityscapes", street).keywords == {
        "base_size": 1, "crop_size": (2, 3), "scales": (0.25, 4.0),
    }  # fmt: skip
    street.cat_max_ratio = 0.5
    assert plain_sample("cityscapes", street).func is distorted_crop
    assert plain_sample("isic", Namespace(image_size=64, augmentation_prob=0.4)).func is lesion
