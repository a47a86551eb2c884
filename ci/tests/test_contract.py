"""What every model folder must do, run over all of them with tiny shapes."""

import contextlib
import inspect
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ci.tests.folders import FOLDERS, ROOT, built, carry_out, command_line, module, parsed
from ci.tests.runs import assert_same_state, forked, in_two_processes, last_checkpoint, metric_rows
from common import IGNORE_INDEX, dry_run
from common.args import parse_args
from common.errors import Diverged, InputError
from common.samples.layout import draw
from common.start import launch
from common.tools.complexity import complexity

# The flags of each original README and of its scripts, with a value, and what they mean here.
ORIGINAL_FLAGS = {
    "AttentionUNet": [
        ("--data=/d", "data_path", "/d"),
        ("--data_path=/d", "data_path", "/d"),
        ("--addr=10.0.0.1", "master_addr", "10.0.0.1"),
        ("--arch=R2U_Net", "arch", "R2U_Net"),
        ("--model_type=AttU_Net", "arch", "AttU_Net"),
        ("--workers=32", "workers", 32),
        ("--num_workers=32", "workers", 32),
        ("--epoch=150", "epochs", 150),
        ("--epochs=150", "epochs", 150),
        ("--num_epochs=150", "epochs", 150),
        ("--num_epochs_decay=70", "decay_epochs", 70),
        ("--batch-size=128", "total_batch_size", 128),
        ("--batch_size=128", "total_batch_size", 128),
        ("--lr=0.0016", "lr", 0.0016),
        ("--momentum=0.5", "beta1", 0.5),
        ("--momentum1=0.5", "beta1", 0.5),
        ("--momentum2=0.999", "beta2", 0.999),
        ("--beta1=0.5", "beta1", 0.5),
        ("--beta2=0.999", "beta2", 0.999),
        ("--weight_decay=0.0001", "weight_decay", 0.0001),
        ("--amp", "amp", True),
        ("--apex", "amp", True),
        ("--apex=True", "amp", True),
        ("--opt-level=O2", "opt_level", "O2"),
        ("--apex_opt_level=O1", "opt_level", "O1"),
        ("--loss-scale=dynamic", "loss_scale", "dynamic"),
        ("--loss_scale_value=1024", "loss_scale", "1024"),
        ("--multiprocessing-distributed", "distributed", 1),
        ("--distributed=1", "distributed", 1),
        ("--device-list=0,1,2", "device_list", [0, 1, 2]),
        ("--device_id=3", "device_list", [3]),
        ("--npu_idx=1", "device_list", [1]),
        ("--image_size=224", "image_size", 224),
        ("--t=3", "t", 3),
        ("--augmentation_prob=0.4", "augmentation_prob", 0.4),
        ("--log_step=2", "log_every_steps", 2),
        ("--val_step=2", "eval_every_epochs", 2),
        ("--pth_path=/w", "load_from", "/w"),
        ("--model_path=/o", "output_dir", "/o"),
        ("--result_path=/o", "output_dir", "/o"),
        ("--seed=12345", "seed", 12345),
    ],
    "DeeplabV3": [
        ("--data=/d", "data_path", "/d"),
        ("--data_path=/d", "data_path", "/d"),
        ("--arch=deeplabv3_r50", "arch", "deeplabv3_r50"),
        ("--workers=16", "workers", 16),
        ("--epoch=1000", "epochs", 1000),
        ("--batch_size=6", "device_batch_size", 6),
        ("--lr=0.01", "lr", 0.01),
        ("--momentum=0.9", "momentum", 0.9),
        ("--weight_decay=0.0001", "weight_decay", 0.0001),
        ("--seed=1", "seed", 1),
        ("--amp", "amp", True),
        ("--loss_scale=1024", "loss_scale", "1024"),
        ("--opt_level=O2", "opt_level", "O2"),
        ("--multiprocessing_distributed", "distributed", 1),
        ("--device=npu", "device", "npu"),
        ("--device_list=0,1", "device_list", [0, 1]),
        ("--device_id=3", "device_list", [3]),
        ("--gpus=2", "devices", 2),
        ("--gpu_ids=1,2", "device_list", [1, 2]),
        ("--addr=10.0.0.1", "master_addr", "10.0.0.1"),
        ("--nnodes=2", "nnodes", 2),
        ("--node_rank=1", "node_rank", 1),
        ("--local_addr=10.0.0.2", "local_addr", "10.0.0.2"),
        ("--master_addr=10.0.0.1", "master_addr", "10.0.0.1"),
        ("--master_port=23333", "master_port", 23333),
        ("--learning_rate=0.06", "lr", 0.06),
        ("--local_rank=0", "local_rank", 0),
        ("--work_dir=/o", "output_dir", "/o"),
        ("--load_from=/w", "load_from", "/w"),
        ("--resume_from=/c", "resume", "/c"),
        ("--no_validate", "validate", False),
        ("--deterministic", "deterministic", True),
    ],
    "BiSeNetv1": [
        ("--data_path=/d", "data_path", "/d"),
        ("--device_id=3", "device_list", [3]),
        ("--work-dir=/w", "output_dir", "/w"),
        ("--load-from=/w/iter_8000.pth", "load_from", "/w/iter_8000.pth"),
        ("--resume-from=/w/last.pt", "resume", "/w/last.pt"),
        ("--no-validate", "validate", False),
        ("--gpus=8", "devices", 8),
        ("--gpu-ids=0,1", "device_list", [0, 1]),
        ("--seed=7", "seed", 7),
        ("--deterministic", "deterministic", True),
        ("--local_rank=2", "local_rank", 2),
        ("--device=npu", "device", "npu"),
        ("--device=gpu", "device", "gpu"),
        ("--addr=10.0.0.1", "master_addr", "10.0.0.1"),
        ("--device_list=0,1,2,3,4,5,6,7", "device_list", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("--amp", "amp", True),
        ("--loss-scale=-1", "loss_scale", "-1"),
        ("--loss-scale=128.0", "loss_scale", "128.0"),
        ("--opt-level=O1", "opt_level", "O1"),
        ("--prof", "prof", True),
        ("--prof_test", "prof_test", True),
        ("--warm_up_epochs=5", "warmup_epochs", 5),
    ],
    "DynamicUNet": [
        ("--model=dynamicunet", "arch", "dynamicunet"),
        ("--backbone=resnet50", "backbone", "resnet50"),
        ("--dataset=pascal_aug", "dataset", "pascal_aug"),
        ("--dataset-path=/d", "data_path", "/d"),
        ("--data_path=/d", "data_path", "/d"),
        ("--data=/d", "data_path", "/d"),
        ("--pretrained=/w", "pretrained", "/w"),
        ("--more_path1=/w", "pretrained", "/w"),
        ("--base-size=520", "base_size", 520),
        ("--crop-size=480", "crop_size", (480, 480)),
        ("--workers=8", "workers", 8),
        ("--worker=8", "workers", 8),
        ("--batch-size=4", "device_batch_size", 4),
        ("--batch_size=4", "device_batch_size", 4),
        ("--epochs=50", "epochs", 50),
        ("--lr=1e-4", "lr", 1e-4),
        ("--momentum=0.9", "momentum", 0.9),
        ("--weight-decay=1e-4", "weight_decay", 1e-4),
        ("--warmup-iters=20", "warmup_steps", 20),
        ("--warmup-factor=0.25", "warmup_factor", 0.25),
        ("--no-cuda", "device", "cpu"),
        ("--device_id=3", "device_list", [3]),
        ("--local_rank=1", "local_rank", 1),
        ("--resume=/c/last.pt", "resume", "/c/last.pt"),
        ("--save-dir=/o", "output_dir", "/o"),
        ("--save-epoch=10", "save_every_epochs", 10),
        ("--log-iter=10", "log_every_steps", 10),
        ("--val-epoch=5", "eval_every_epochs", 5),
        ("--skip-val", "validate", False),
        ("--perf-only", "validate", False),
        ("--perf_iter=50", "max_steps", 50),
        ("--perf_iter=-1", "max_steps", 0),
        ("--amp", "amp", True),
        ("--fp32", "amp", False),
        ("--hf32", "hf32", True),
        ("--precision_mode=must_keep_origin_dtype", "precision_mode", "must_keep_origin_dtype"),
        ("--precision_mode=allow_mix_precision", "precision_mode", "allow_mix_precision"),
        ("--precision_mode=allow_fp32_to_fp16", "precision_mode", "allow_fp32_to_fp16"),
    ],
    "ICNet": [
        ("--cityscapes_root=/d", "data_path", "/d"),
        ("--name=icnet", "arch", "icnet"),
        ("--backbone=resnet101", "backbone", "resnet101"),
        ("--base_size=1024", "base_size", 1024),
        ("--crop_size=960", "crop_size", (960, 960)),
        ("--epochs=200", "epochs", 200),
        ("--train_batch_size=16", "device_batch_size", 16),
        ("--valid_batch_size=16", "eval_batch_size", 16),
        ("--init_lr=0.01", "lr", 0.01),
        ("--momentum=0.9", "momentum", 0.9),
        ("--weight_decay=0.0001", "weight_decay", 0.0001),
        ("--is_distributed=1", "distributed", 1),
        ("--is_distributed=True", "distributed", 1),
        ("--is_distributed=False", "distributed", 0),
        ("--data_path=/d", "data_path", "/d"),
        ("--device_id=3", "device_list", [3]),
        ("--more_path1=/w", "pretrained", "/w"),
    ],
}
# What every run here has in common; sizes and network are those of the folder's preset `tiny`.
TINY = {"preset": "tiny", "device": "cpu", "workers": 0, "log_every_steps": 1, "seed": 3, "deterministic": 1}
EPOCHS, STEPS = 2, 8  # with an evaluation after each epoch of four steps

pytestmark = [pytest.mark.parametrize("folder", FOLDERS), pytest.mark.usefixtures("narrow")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[[str], Path]:
    """data(folder) -> 8 training and 3 validation pictures of 64x96 pixels in the folder's layout."""
    root = tmp_path_factory.mktemp("contract")

    def drawn(folder: str) -> Path:
        layout = module(folder, "presets").LAYOUT
        return draw(layout, root / layout, train_images=8, val_images=3, size=(64, 96))

    return drawn


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The processes of these tests compute alike, bit for bit, whatever OMP_NUM_THREADS is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(folder: str, **options) -> torch.nn.Module:
    """The network of the folder's preset `tiny`."""
    build_model = module(folder, "model").build_model
    tiny = module(folder, "presets").PRESETS["tiny"]
    known = inspect.signature(build_model).parameters
    return build_model(**{name: value for name, value in tiny.items() if name in known} | options)


def loss_of(folder: str, outputs, target) -> torch.Tensor:
    return sum(module(folder, "model").training_loss(outputs, target).values())


def flags_of(folder: str, data, output_dir, **flags) -> dict:
    """Those of every run here, and over them the ones that are given."""
    counts_steps = "eval_every_steps" in module(folder, "presets").BASE
    evaluations = {"eval_every_steps": STEPS // EPOCHS} if counts_steps else {}
    return {**TINY, "epochs": EPOCHS, **evaluations, "data_path": data(folder), "output_dir": output_dir, **flags}


def train(folder: str, data, output_dir, **flags) -> dict:
    """A run in this process; returns its result."""
    threads = torch.get_num_threads()
    try:
        return carry_out(folder, **flags_of(folder, data, output_dir, **flags))
    finally:
        assert torch.get_num_threads() == threads


class Finished(NamedTuple):
    """A run that has come to its end."""

    output_dir: Path
    result: dict
    printed: str


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Callable[[str], Finished]:
    """finished(folder) -> the run of all eight steps, done once: tests leave its folder as it is."""
    done = {}

    def run(folder: str) -> Finished:
        if folder not in done:
            output_dir = tmp_path_factory.mktemp(folder) / "whole"
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                result = train(folder, data, output_dir)
            done[folder] = Finished(output_dir, result, printed.getvalue())
        return done[folder]

    return run


# ---- the model


def test_outputs_of_training_and_evaluation(folder):
    model = build(folder)
    images = torch.randn(2, 3, 64, 96)
    outputs = model.train()(images)
    assert isinstance(outputs, tuple)
    classes = outputs[0].shape[1]
    assert all(output.shape[:2] == (2, classes) for output in outputs)
    model.eval()
    with torch.no_grad():
        for height, width in ((64, 96), (80, 112)):
            logits = model(torch.randn(1, 3, height, width))
            assert logits.shape == (1, classes, height, width)
            assert logits.dtype == torch.float32


def test_a_checkpoint_says_how_to_build_its_model(folder):
    model = build(folder, num_classes=5)
    assert model.options["num_classes"] == 5
    rebuilt = module(folder, "model").build_model(**model.options)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_own_names_pass_from_reference_unchanged(folder):
    state = build(folder).state_dict()
    assert list(module(folder, "weights").from_reference(state)) == list(state)


def test_a_shape_that_does_not_fit_says_which_would(folder):
    with pytest.raises(ValueError, match=r"\[1, 1, 64, 64\].*\[B, 3, H, W\]"):
        build(folder).eval()(torch.zeros(1, 1, 64, 64))


def test_loss_falls_on_one_repeated_batch(folder):
    torch.manual_seed(0)
    model = build(folder).train()
    images, target = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    target[:, :, 32:] = 1
    target[:, :4] = 255
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    while len(losses) < 40 and (not losses or losses[-1] >= 0.5 * losses[0]):
        loss = loss_of(folder, model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters()), "every weight takes part in the loss"


@pytest.mark.parametrize("images", [1, 2])
def test_a_batch_without_labels_teaches_nothing(folder, images):
    """Loss 0 and gradients of 0, and nothing of 0 / 0; one image trains too, or is refused with what is needed."""
    torch.manual_seed(0)
    model, shape = build(folder).train(), (images, 3, 64, 64)
    try:
        model.check_shape(shape)
    except InputError as error:
        assert images == 1 and "device_batch_size" in str(error) and "2" in str(error) and "\n" not in str(error)
        return
    for labelled in (0, 8):  # rows
        target = torch.full((images, 64, 64), IGNORE_INDEX)
        target[0, :labelled] = 1
        model.zero_grad()
        loss = loss_of(folder, model(torch.randn(shape)), target)
        loss.backward()
        largest = max(parameter.grad.abs().max() for parameter in model.parameters())
        assert (loss > 0 and largest > 0) if labelled else (loss == 0 and largest == 0)
        assert torch.isfinite(torch.stack([loss, largest])).all()


# ---- the run


def test_what_does_not_fill_a_step_waits_for_another_epoch_and_an_epoch_has_a_step(folder, data, tmp_path):
    """Of eight pictures two steps of three, and none of nine."""
    run, *_ = built(folder, **flags_of(folder, data, tmp_path / "run", device_batch_size=3))
    assert (run.length.steps_per_epoch, run.length.schedule_steps) == (2, 2 * EPOCHS)
    with pytest.raises(InputError, match=r"8 training images are fewer than the 9 of one step.*--device_batch_size"):
        built(folder, **flags_of(folder, data, tmp_path / "run", device_batch_size=9))


def test_data_sets_reach_workers_that_are_not_forked(folder, data, tmp_path):
    """As pickles, where the system starts processes anew; what they read is the same."""
    _, datasets, _ = built(folder, **flags_of(folder, data, tmp_path / "run"))
    for dataset, key in ((datasets.train, (1, 3)), (datasets.val, 1)):
        for ours, theirs in zip(dataset[key], pickle.loads(pickle.dumps(dataset))[key], strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_an_interrupted_run_equals_an_uninterrupted_one(folder, data, finished, tmp_path):
    whole = finished(folder)
    first = train(folder, data, tmp_path / "parts", max_steps=3)
    assert (whole.result["steps"], first["steps"]) == (STEPS, 3)
    rest = train(folder, data, tmp_path / "parts", resume="auto")
    assert rest["steps"] == STEPS
    assert_same_state(last_checkpoint(whole.output_dir), last_checkpoint(tmp_path / "parts"))
    rows = {
        name: metric_rows(output_dir, "train") + metric_rows(output_dir, "eval")
        for name, output_dir in (("whole", whole.output_dir), ("parts", tmp_path / "parts"))
    }
    rows["parts"] = [row for row in rows["parts"] if row["kind"] == "train" or row["step"] != 3]  # where it stopped
    assert [row["step"] for row in rows["whole"]] == [*range(1, STEPS + 1), STEPS // EPOCHS, STEPS]
    for name, varying in product(rows, ("images_per_second", "data_wait_share", "resident_memory_gib", "best")):
        rows[name] = [{key: value for key, value in row.items() if key != varying} for row in rows[name]]
    assert rows["whole"] == rows["parts"]


LONG = {"epochs": 50, "validate": 0}  # too long to end before it is killed
SCRIPTED = "AttentionUNet"  # killed as a user has started it; of the others a copy of this process is, which is narrow


def test_a_killed_run_continues_bit_for_bit(folder, data, tmp_path):
    """kill -9 at a random step, then --resume auto, against a run that was left alone."""
    output_dir, said = tmp_path / "killed", tmp_path / "said"
    flags = flags_of(folder, data, output_dir, **LONG, save_every_steps=1)
    pid, exit_code = start_script(folder, said, flags) if folder == SCRIPTED else start_copy(folder, said, flags)
    kill_at = random.randint(2, 6)
    while steps_logged(output_dir) < kill_at:
        assert exit_code() is None, said.read_text()
        time.sleep(0.005)
    time.sleep(random.random() * 0.2)  # also between the line of the log and the end of the checkpoint
    os.kill(pid, signal.SIGKILL)
    while exit_code() is None:
        time.sleep(0.005)
    assert exit_code() == -signal.SIGKILL, "it ended before it was killed"

    steps_done = last_checkpoint(output_dir)["steps_done"]
    assert steps_done >= kill_at - 1
    steps = steps_done + 2
    train(folder, data, output_dir, **LONG, save_every_steps=1, max_steps=steps, resume="auto")
    train(folder, data, tmp_path / "whole", **LONG, max_steps=steps)
    assert_same_state(last_checkpoint(tmp_path / "whole"), last_checkpoint(output_dir))
    assert [row["step"] for row in metric_rows(output_dir, "train")] == list(range(1, steps + 1))


def start_script(folder: str, said: Path, flags: dict) -> tuple[int, Callable[[], int | None]]:
    """Start the folder's train.py as a user does; (its pid, what tells its exit code: None as long as it runs)."""
    with open(said, "w") as file:
        script = subprocess.Popen(
            [sys.executable, ROOT / folder / "train.py", *command_line(**flags)],
            stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return script.pid, script.poll


def start_copy(folder: str, said: Path, flags: dict) -> tuple[int, Callable[[], int | None]]:
    """The same in a copy of this process."""
    process = forked(said, carry_out, folder, **flags)
    return process.pid, lambda: process.exitcode


def steps_logged(output_dir: Path) -> int:
    """How many steps metrics.jsonl tells of so far, with a line to each."""
    path = output_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    folder, data, tmp_path, monkeypatch
):
    """And --loss and --class_weights reach the loss of every folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entry = module(folder, "train")
    real, calls, names, chosen = entry.training_loss, [], [], []

    def broken(*arguments, **options):
        """The last of the terms is nan in the sixth step."""
        losses = real(*arguments, **options)
        calls.append(1)
        names[:] = losses
        chosen[:] = [options["criterion"]]
        return losses | {names[-1]: losses[names[-1]] * (float("nan") if len(calls) == 6 else 1.0)}

    monkeypatch.setattr(entry, "training_loss", broken)
    with pytest.raises(Diverged, match="loss is nan.* at step 6 of 8") as stopped:
        train(folder, data, tmp_path / "run", log_every_steps=4, loss="ce,dice:0.5", class_weights="auto")
    assert chosen[0].terms == {"ce": 1.0, "dice": 0.5} and chosen[0].options.class_weights.min() > 1
    assert (f"nan (its {names[-1]} term) at" in str(stopped.value)) == (len(names) > 1)
    kept = last_checkpoint(tmp_path / "run")
    assert kept["steps_done"] == 4
    assert all(torch.isfinite(value).all() for value in kept["model"].values())


def test_two_processes_evaluate_like_one(folder, data, finished, tmp_path):
    """By their scores, and by how many pixels these are made of: all that are labelled, each one once."""
    # one image at a time: a batch of another size is rounded differently, which moves a pixel now and then
    flags = {"evaluate": 1, "checkpoint": finished(folder).output_dir / "checkpoints" / "best.pt", "eval_batch_size": 1}
    train(folder, data, tmp_path / "one", **flags)
    given = flags_of(folder, data, tmp_path / "two", **flags)
    in_two_processes(tmp_path, carry_out, folder, processes=2, **given)
    (alone,), (together,) = (metric_rows(tmp_path / name, "eval") for name in ("one", "two"))
    assert alone == together
    pictures = module(folder, "data").build_datasets(parsed(folder, **given)).val
    labelled = [(pictures[index][1] != IGNORE_INDEX).sum().item() for index in range(len(pictures))]
    assert len(labelled) == 3 and alone["pixels"] == sum(labelled)


def test_processes_are_compared_before_they_work_together(folder, data, finished, tmp_path, monkeypatch):
    """In a training that continues, and in an evaluation: by what each of them has found and been told."""
    seen, run = [], finished(folder).output_dir

    def compare(world, args, first_step, *datasets):
        seen.append((args.lr, first_step, [len(dataset) for dataset in datasets if dataset]))
        raise InputError("they differ")

    for place in ("run", "trained"):
        monkeypatch.setattr(f"common.{place}.check_same", compare)
    before = sorted(run.rglob("*"))
    evaluation = {"evaluate": 1, "checkpoint": run / "checkpoints" / "last.pt", "lr": 0.5}
    for output_dir, flags in (
        (run, {"resume": "auto", "resume_anyway": 1, "lr": 0.5}),
        (tmp_path / "scored", evaluation),
    ):
        with pytest.raises(InputError, match="they differ"):
            train(folder, data, output_dir, **flags)
    assert sorted(run.rglob("*")) == before and not (tmp_path / "scored").exists()
    (rate, first_step, training_images), (rate_too, no_step, evaluation_images) = seen
    assert (rate, first_step, rate_too, no_step) == (0.5, STEPS, 0.5, 0)
    assert len(training_images) >= 2 and len(evaluation_images) == 1 and all(training_images + evaluation_images)


def test_a_run_leaves_what_it_promises(folder, finished):
    output_dir, result, printed = finished(folder)
    names = {path.name for path in output_dir.iterdir() if not path.name.startswith(".")}
    report = f"{result['case']}.log"
    assert names == {
        "train.log",
        "metrics.jsonl",
        "config.json",
        "events",
        "checkpoints",
        "result.json",
        report,
        "first_batch.png",
        "confusion_matrix.png",
        "examples",
    }
    lines = printed.partition("Final result ------------------\n")[2].splitlines()
    closing = {name: value for name, _, value in (line.partition(" : ") for line in lines)}
    assert list(closing)[:2] == ["Final Performance images/sec", "Final Train Accuracy"]
    assert list(closing)[-1] == "E2E Training Duration sec"
    assert float(closing["Final Performance images/sec"]) == pytest.approx(result["images_per_second"], abs=0.006)
    assert json.loads((output_dir / "result.json").read_text())["best"] == result["best"]


def test_o2_trains_and_resumes_in_half_precision(folder, data, tmp_path, monkeypatch):
    flags = {"amp": 1, "opt_level": "O2", "amp_dtype": "bf16", "validate": 0, "epochs": 1}
    entry, models = module(folder, "train"), []
    real = entry.main
    monkeypatch.setattr(
        entry, "main", lambda args, run, data, model: models.append(model) or real(args, run, data, model)
    )
    train(folder, data, tmp_path / "whole", **flags)
    dtypes = {type(layer): layer.weight.dtype for layer in models[0].modules() if hasattr(layer, "weight")}
    assert (dtypes[torch.nn.Conv2d], dtypes[torch.nn.BatchNorm2d]) == (torch.bfloat16, torch.float32)
    train(folder, data, tmp_path / "parts", max_steps=2, **flags)
    train(folder, data, tmp_path / "parts", resume="auto", **flags)
    assert_same_state(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts"))
    assert all(value.dtype != torch.bfloat16 for value in last_checkpoint(tmp_path / "whole")["model"].values())


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_what_takes_long_is_done_once_in_a_process(folder, purpose, data, finished, tmp_path, monkeypatch):
    """The data set is listed, the network built and the checkpoint read once, by the check and the run together."""
    weights = finished(folder).output_dir / "checkpoints" / "last.pt"
    entry, calls = module(folder, "train"), []

    def counted(name: str, real: Callable) -> Callable:
        return lambda *arguments, **options: calls.append(name) or real(*arguments, **options)

    monkeypatch.setattr(entry, "build_datasets", counted("data sets", entry.build_datasets))
    monkeypatch.setattr(entry, "build_model", counted("network", entry.build_model))
    monkeypatch.setattr(torch, "load", counted("checkpoint", torch.load))
    flags = {"training": {"resume": weights, "resume_anyway": 1, "epochs": 3, "max_steps": STEPS + 1, "validate": 0}}
    flags["evaluation"] = {"evaluate": 1, "checkpoint": weights}
    args = parsed(folder, **flags_of(folder, data, tmp_path / "run", **flags[purpose], deterministic=0))
    launch(entry.main, entry.build, args, module(folder, "presets"))
    assert (tmp_path / "run" / "result.json").exists()
    assert sorted(calls) == ["checkpoint", "data sets", "network"]


def test_a_checkpoint_that_is_missing_is_refused_before_the_labels_are_opened(folder, data, tmp_path):
    """Thousands of files, which take minutes on a slow disk."""
    root = shutil.copytree(data(folder), tmp_path / "data")
    given = flags_of(folder, lambda _: root, tmp_path / "run", check_data=1)
    label = module(folder, "data").build_datasets(parsed(folder, **given)).train.pairs[0][1]
    label.write_bytes(label.read_bytes()[:50])
    with pytest.raises(InputError, match=label.name):
        built(folder, **given)
    with pytest.raises(InputError, match="no checkpoint .*nowhere.pt"):
        built(folder, **given, resume=tmp_path / "nowhere.pt")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_measures_and_leaves_nothing(folder, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "SECONDS", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in data(folder).rglob("*")}
    args = parsed(folder, **flags_of(folder, data, tmp_path / "run", dry_run=1, deterministic=0))
    script, presets = module(folder, "train"), module(folder, "presets")
    launch(script.main, script.build, args, presets)
    assert {path: path.stat().st_mtime_ns for path in data(folder).rglob("*")} == before
    assert not list(tmp_path.glob("segmentation-zoo-*")) and not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if not line.startswith(" ") and " " in line)
    assert lines["data"].startswith("8 for training, 3 for validation")
    assert lines["steps"].startswith(f"{STEPS // EPOCHS} per epoch, {STEPS} in all ({EPOCHS} epochs), each of 2 ")
    size = (args.image_size,) * 2 if "image_size" in args else args.crop_size
    tensors, gigaflops = complexity(build, {"folder": folder}, size)
    assert lines["network"].startswith(f"{tensors:,} parameters; {gigaflops / 1e9:,.1f} GFLOPs for an image of ")
    assert lines["measured"].startswith("3 steps in float32 with the data loader (--workers 0), after 1 of warm-up, on")
    assert {"speed", "memory", "time"} <= lines.keys() and "nothing was written to" in lines["dry"]
    origins = dict(re.findall(r"^  --(\w+) .*  (\S.*)$", said, re.MULTILINE))
    expected = {"epochs": "command line", "lr": "preset tiny", "clip_norm": "default"}
    assert {name: origins[name] for name in expected} == expected


# ---- the command line


def test_precision_has_the_same_spellings_everywhere(folder):
    """Those of apex and of the original scripts, whichever model they are of."""
    presets = module(folder, "presets")
    args = parse_args(
        presets, ["--apex", "--apex-opt-level=O2", "--loss-scale=-1", "--precision_mode=allow_fp32_to_fp16"]
    )
    assert (args.amp, args.opt_level, args.loss_scale) == (True, "O2", "-1")
    assert args.precision_mode == "allow_fp32_to_fp16"
    args = parse_args(presets, ["--fp32", "--opt-level", "O1", "--loss_scale_value", "128"])
    assert (args.amp, args.hf32, args.opt_level, args.loss_scale) == (False, False, "O1", "128")
    assert parse_args(presets, []).precision_mode is None


def test_every_flag_of_the_original_readme_means_what_it_meant(folder):
    presets = module(folder, "presets")
    for flag, name, value in ORIGINAL_FLAGS.get(folder, ()):
        for spelling in (flag, flag.replace("_", "-", flag.partition("=")[0].count("_"))):
            assert getattr(parse_args(presets, [spelling]), name) == value, spelling


def test_the_first_choice_of_a_flag_is_its_default(folder):
    """predict.py, which has no presets, takes the first one."""
    presets = module(folder, "presets")
    for name, choices in presets.CHOICES.items():
        assert choices[0] == next(iter(presets.PRESETS.values()))[name], name


def test_unknown_flags_are_refused_in_one_line(folder):
    done = subprocess.run(
        [sys.executable, ROOT / folder / "train.py", "--no_such_flag=1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--no_such_flag" in done.stderr
