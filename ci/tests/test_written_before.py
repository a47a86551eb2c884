"""What an earlier version wrote stays readable: run folders, checkpoints and caches, through the command line alone.

Whoever trained with that version has weeks of work in such files. Where a test fails here, the code has to learn to
read them again; they are not to be written anew. written_before/ holds what that version (commit b858244) wrote, and
expected.json the numbers that it came to itself when it went on from there, on one thread of a CPU.

AttentionUNet/run is a whole run folder, stopped after 3 of 8 steps. It began with trained weights, of which the deep
levels are switched off by a bias of -100 and hold short patterns that repeat: so its real numbers are few. Afterwards
nothing was changed but this: binary files are compressed, and what tells the machine is taken out of config.json and of
the name of the file of events. Data and output lay in /data, and no other path is named.

Of each other network there are a last.pt and a best.pt. Their structure is what was saved after two steps. The numbers
of weights, statistics and momentum are overwritten by short patterns that repeat, chosen so that the network predicts
many classes; so 250 MB become 20 KB when they are compressed twice.

pictures/ holds a small data set for each layout, and cache/ what --cache made of two of them.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import ROOT

WRITTEN = Path(__file__).parent / "written_before"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8"))
PICTURES = {"AttentionUNet": "isic", "DynamicUNet": "voc"}  # the others: cityscapes
CHANGED = 1_700_000_000 * 10**9  # nanoseconds; when all pictures were changed last, as cache files have it

# How all runs here were started, besides where their files are. What decides the numbers is told, and not left to the
# preset, which may change.
FLAGS = {"preset": "tiny", "device": "cpu", "workers": 0, "log_every_steps": 1, "seed": 3, "deterministic": 1}
FLAGS |= {"device_batch_size": 2, "eval_batch_size": 2}
# The patterns make gradients that depend on how sums are rounded. At a low rate it is the momentum that counts.
PATTERNS = {"lr": 5e-6, "pretrained": "none", "base_size": 64, "crop_size": 64}
OWN_FLAGS = {
    "AttentionUNet": {"epochs": 2, "eval_every_epochs": 1, "image_size": 32, "base_channels": 2, "lr": 0.01}
    | {"weight_decay": 0.001},
    "BiSeNetv1": {**PATTERNS, "backbone": "resnet18", "total_steps": 8, "warmup_steps": 2, "min_lr": 0},
    "DeeplabV3": {**PATTERNS, "backbone": "resnet18", "total_steps": 8, "min_lr": 0},
    "DynamicUNet": {**PATTERNS, "backbone": "resnet18", "epochs": 2},
    "ICNet": {**PATTERNS, "backbone": "resnet50", "epochs": 2},
}
# Other processors and other versions of torch add in another order. A loss differs by it in the fifth digit or later,
# and a score by the share of the pixels that lie on an edge between two classes. (thresholded_jaccard, which may jump
# by that, is not among the expected ones.)
LOSS = {"rel": 2e-4}
SCORE = {"abs": 0.01}
WEIGHTS = {"rel": 1e-3, "abs": 2e-4}

# Runs scripts one after the other, each in a process as if it had been started alone. What takes them all seconds to
# import is imported once. Some versions of torch (2.6, by way of MKL) draw other channels to drop from the same seed:
# here each version draws as that did which the expected losses are of.
STARTER = """
import contextlib, importlib, json, os, runpy, sys
for name in ("torch", "torch._dynamo", "torchvision", "tensorboardX"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import torch
def dropout2d(images, p=0.5, training=True, inplace=False):
    if not training:
        return images
    kept = torch.rand(*images.shape[:2], 1, 1, dtype=torch.float64) < 1 - p
    return images * kept / (1 - p)
torch.nn.functional.dropout2d = dropout2d
for line in sys.stdin:
    codes, (root, commands) = {}, json.loads(line)
    os.chdir(root)
    for name, (script, *arguments) in commands.items():
        child = os.fork()
        if not child:
            output = os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = [script, *arguments]
            sys.path[0] = os.path.dirname(script)
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(codes), flush=True)
"""


# ---- laying out what was written


def unpack(source: Path, target: Path) -> Path:
    """Write the content of a file that was compressed as often as it has .xz in its name."""
    content = source.read_bytes()
    for _ in range(source.name.count(".xz")):
        content = lzma.decompress(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def unpack_folder(source: Path, target: Path) -> Path:
    """The same for all files of a folder."""
    for path in source.rglob("*"):
        if path.is_file():
            unpack(path, target / path.relative_to(source).with_name(path.name.replace(".xz", "")))
    return target


def lay_out_pictures(layout: str, root: Path, readable: bool = True) -> Path:
    """A data set. Unless it is to be `readable`, the last part of each picture is lost, and its size is what it was."""
    shutil.copytree(WRITTEN / "pictures" / layout, root)
    for path in root.rglob("*"):
        if path.suffix in (".png", ".jpg"):
            if not readable:
                content = path.read_bytes()
                path.write_bytes(content[: len(content) * 3 // 4].ljust(len(content), b"\0"))
            os.utime(path, ns=(CHANGED, CHANGED))
    return root


def lay_out_cache(layout: str, pictures: Path, folder: Path) -> Path:
    """The cache of a data set that lies in `pictures`.

    A file has its name from what it holds and from where its two sources are. The code is not asked for that name,
    which users' caches have: were another one looked for, they would be of no use any more.
    """
    for number, (contents, *pair) in enumerate(json.loads((WRITTEN / "cache" / f"{layout}.json").read_text())):
        key = json.dumps([contents, *(str((pictures / path).absolute()) for path in pair)])
        name = blake2b(key.encode(), digest_size=16).hexdigest() + ".pair"
        unpack(WRITTEN / "cache" / layout / f"{number:02d}.pair.xz", folder / name)
        os.utime(folder / name, ns=(CHANGED, CHANGED))
    return folder


def check_cache_is_as_laid_out(cache: Path, layout: str, pictures: Path) -> None:
    """No file has come to it, and none was written again, not even with the same content."""
    again = lay_out_cache(layout, pictures, cache.with_name("as_laid_out"))
    found, expected = (
        {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
        for folder in (cache, again)
    )
    assert found.keys() == expected.keys()
    assert found == expected


# ---- running the scripts


class Runs(NamedTuple):
    """Scripts that have been run one after the other, and what they left in `root`."""

    root: Path
    codes: dict[str, int]  # by name of the run

    def output(self, name: str) -> Path:
        """Where a run wrote to. It fails the test that asks, with what was printed, when the run has failed."""
        said = (self.root / f"{name}.txt").read_text(encoding="utf-8")
        assert self.codes[name] == 0, f"{name} ended with exit code {self.codes[name]}:\n{said}"
        return self.root / name


@pytest.fixture(scope="module")
def starter() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield process


def run_all(starter: subprocess.Popen, root: Path, commands: dict[str, list[str]]) -> Runs:
    """Run each of the command lines, whatever became of those before it."""
    print(json.dumps([str(root), commands]), file=starter.stdin, flush=True)
    return Runs(root, json.loads(starter.stdout.readline()))


def command_line(folder: str, data: Path, output_dir: Path, **flags) -> list[str]:
    values = {**FLAGS, **OWN_FLAGS.get(folder, {}), "data_path": data, "output_dir": output_dir, **flags}
    return [str(ROOT / folder / "train.py"), *(f"--{name}={value}" for name, value in values.items())]


def rows(output_dir: Path, kind: str) -> list[dict]:
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def losses(output_dir: Path) -> dict[str, float]:
    """The loss of each step, by its number."""
    return {str(row["step"]): row["loss"] for row in rows(output_dir, "train")}


def scores(output_dir: Path) -> dict[str, float]:
    """The numbers of the last evaluation, with the IoU of each class that occurs in truth or prediction."""
    row = rows(output_dir, "eval")[-1]
    return row | {f"IoU of {name}": iou for name, iou in row.pop("class_iou").items() if iou is not None}


def check_scores(found: dict[str, float], expected: dict[str, float]) -> None:
    """All that are expected; there may be others by now."""
    assert {name: found[name] for name in expected if name in found} == pytest.approx(expected, **SCORE)


def result(output_dir: Path) -> dict:
    return json.loads((output_dir / "result.json").read_text(encoding="utf-8"))


def fingerprint(checkpoint: Path) -> dict[str, list[float]]:
    """Mean and mean magnitude of each tensor of weights and statistics."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    tensors = {name: value.double() for name, value in state.items() if value.is_floating_point()}
    return {name: [value.mean().item(), value.abs().mean().item()] for name, value in tensors.items()}


def marked(output: Path) -> int:
    """How many pixels of the one picture predict.py has found to be lesion."""
    (path,) = output.rglob("*_ids.png")
    return int(np.count_nonzero(np.asarray(Image.open(path))))


# ---- Attention U-Net


def run_attention_unet(starter: subprocess.Popen, root: Path) -> Runs:
    """Everything that is done with the run folder, each time with a copy of its own."""
    folder, written = "AttentionUNet", WRITTEN / "AttentionUNet" / "run"
    data, lost = lay_out_pictures("isic", root / "isic"), lay_out_pictures("isic", root / "lost", readable=False)
    cache = lay_out_cache("isic", lost, root / "cache")
    weights = unpack_folder(written, root / "first") / "checkpoints"
    for name in ("ended", "resumed", "cached", "followed"):
        unpack_folder(written, root / name)
    runs = {
        "ended": {"resume": "auto", "max_steps": 3},
        "resumed": {"resume": "auto"},
        "cached": {"resume": "auto", "data_path": lost, "cache": cache, "check_data": 0},
        "elsewhere": {"resume": weights / "last.pt", "max_steps": 4},
        "followed": {"load_from": weights / "best.pt", "max_steps": 1},
        "evaluated": {"evaluate": 1, "checkpoint": weights / "best.pt"},
    }
    commands = {name: command_line(folder, data, root / name, **flags) for name, flags in runs.items()}
    options = {"checkpoint": weights / "best.pt", "input": data / "valid" / "ISIC_0000001.jpg", "device": "cpu"}
    options["output"] = root / "predicted"
    script = str(ROOT / folder / "predict.py")
    commands["predicted"] = [script, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    return run_all(starter, root, commands)


@pytest.fixture(scope="module")
def attention_unet(starter, tmp_path_factory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("attention_unet")
    yield run_attention_unet(starter, root)
    shutil.rmtree(root)


def end_of(output_dir: Path) -> dict[str, dict]:
    """The numbers of a whole run, none of which depends on whether it was stopped on the way."""
    return {
        "losses": losses(output_dir),
        "scores": scores(output_dir),
        "result": result(output_dir),
        "weights": fingerprint(output_dir / "checkpoints" / "last.pt"),
    }


def check_end(output_dir: Path) -> None:
    """Compare with what the earlier version ended with when it was not stopped."""
    expected, found = EXPECTED["AttentionUNet"]["whole"], end_of(output_dir)
    assert found["losses"] == pytest.approx(expected["losses"], **LOSS)
    check_scores(found["scores"], expected["scores"])
    check_scores(found["result"], expected["result"])  # the best score, and those of its weights on the split test
    assert found["weights"].keys() == expected["weights"].keys()
    for name, numbers in expected["weights"].items():
        assert found["weights"][name] == pytest.approx(numbers, **WEIGHTS), name


def test_a_run_folder_is_continued_to_the_end_that_the_earlier_version_came_to(attention_unet):
    output_dir = attention_unet.output("resumed")
    check_end(output_dir)
    best_so_far = [row["best"] for row in rows(output_dir, "eval")]  # after steps 3, 4 and 8: step 4 is no best
    assert best_so_far[0] == best_so_far[1] == result(WRITTEN / "AttentionUNet" / "run")["best"]


def test_a_cache_serves_a_run_whose_pictures_are_lost(attention_unet):
    """The same end, though nothing could be decoded."""
    check_end(attention_unet.output("cached"))
    check_cache_is_as_laid_out(attention_unet.root / "cache", "isic", attention_unet.root / "lost")


def test_a_run_that_has_ended_is_known_to_have(attention_unet):
    """--resume auto of a run folder that is complete leaves its files as they are."""
    was = WRITTEN / "AttentionUNet" / "run"
    for name in ("metrics.jsonl", "result.json", "config.json"):
        assert (attention_unet.output("ended") / name).read_bytes() == (was / name).read_bytes(), name


def test_a_run_goes_on_in_another_folder(attention_unet):
    expected = EXPECTED["AttentionUNet"]["whole"]["losses"]
    assert losses(attention_unet.output("elsewhere")) == pytest.approx({"4": expected["4"]}, **LOSS)


def test_a_run_folder_is_moved_aside_for_a_new_run(attention_unet):
    """It is recognised as one. The new run begins with its weights."""
    expected = EXPECTED["AttentionUNet"]["loaded"]
    assert losses(attention_unet.output("followed")) == pytest.approx(expected, **LOSS)
    (moved,) = (attention_unet.root / "backup").glob("followed-*/metrics.jsonl")
    assert moved.read_bytes() == (WRITTEN / "AttentionUNet" / "run" / moved.name).read_bytes()


def test_weights_of_a_lesion_network_score_and_predict_as_they_did(attention_unet):
    """predict.py takes the size of the pictures from the checkpoint."""
    expected = EXPECTED["AttentionUNet"]
    check_scores(scores(attention_unet.output("evaluated")), expected["evaluated"])
    assert marked(attention_unet.output("predicted")) == pytest.approx(expected["marked"], rel=0.03)


# ---- the other networks


def checkpoint(folder: str, name: str, root: Path) -> Path:
    """The last.pt or best.pt of a folder, unpacked."""
    return unpack(WRITTEN / folder / f"{name}.pt.xz.xz", root / f"{name}.pt")


def run_patterns(starter: subprocess.Popen, folder: str, root: Path) -> Runs:
    """Everything that is done with the checkpoints of a folder."""
    layout = PICTURES.get(folder, "cityscapes")
    data = lay_out_pictures(layout, root / layout)
    last, best = (checkpoint(folder, name, root) for name in ("last", "best"))
    runs = {
        "resumed": {"resume": last, "max_steps": 4, "validate": 0},
        "evaluated": {"evaluate": 1, "checkpoint": best},
        "loaded": {"load_from": best, "max_steps": 1, "validate": 0},
    }
    commands = {name: command_line(folder, data, root / name, **flags) for name, flags in runs.items()}
    return run_all(starter, root, commands)


@pytest.fixture(scope="module", params=[folder for folder in EXPECTED if folder != "AttentionUNet"])
def patterns(request, starter, tmp_path_factory) -> Iterator[tuple[Runs, dict]]:
    """The runs of a folder, and what is expected of them."""
    root = tmp_path_factory.mktemp(request.param)
    yield run_patterns(starter, request.param, root), EXPECTED[request.param]
    shutil.rmtree(root)


def test_training_continues_from_a_checkpoint(patterns):
    """At the step that it is of, with its weights, and in the step after that with its momentum."""
    runs, expected = patterns
    assert losses(runs.output("resumed")) == pytest.approx(expected["resumed"], **LOSS)
    assert result(runs.output("resumed"))["steps"] == 4


def test_weights_score_as_they_did(patterns):
    runs, expected = patterns
    check_scores(scores(runs.output("evaluated")), expected["evaluated"])


def test_training_starts_from_weights(patterns):
    runs, expected = patterns
    assert losses(runs.output("loaded")) == pytest.approx(expected["loaded"], **LOSS)


def test_a_cache_serves_street_scenes_that_are_lost(starter, tmp_path):
    """Training and evaluation come to the same numbers, though nothing could be decoded."""
    folder, expected = "BiSeNetv1", EXPECTED["BiSeNetv1"]
    best = checkpoint(folder, "best", tmp_path)
    lost = lay_out_pictures("cityscapes", tmp_path / "lost", readable=False)
    cache = lay_out_cache("cityscapes", lost, tmp_path / "cache")
    runs = {
        "loaded": {"load_from": best, "max_steps": 1, "validate": 0},
        "evaluated": {"evaluate": 1, "checkpoint": best},
    }
    commands = {
        name: command_line(folder, lost, tmp_path / name, cache=cache, check_data=0, **flags)
        for name, flags in runs.items()
    }
    done = run_all(starter, tmp_path, commands)
    assert losses(done.output("loaded")) == pytest.approx(expected["loaded"], **LOSS)
    check_scores(scores(done.output("evaluated")), expected["evaluated"])
    check_cache_is_as_laid_out(cache, "cityscapes", lost)
