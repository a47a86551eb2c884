"""What a reader of a model's README does, through its scripts, on the CPU and on tiny data.

python ci/smoke.py [--own] FOLDER ...

The first folder is walked through whole. Of the others, and of all with --own, what differs between folders is: what
only common/ does, which is the same in all of them, is left out.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.args import format_value  # noqa: E402  the line above makes it importable
from common.samples.layout import draw  # noqa: E402  as above


def tiny_flags(presets) -> list[str]:
    """The values of the preset `tiny` where they differ from those of a recipe, as flags for its scripts."""
    # one validation image at a time: a batch of another size is rounded differently, which moves a pixel now and then
    ours = {"device": "cpu", "eval_batch_size": 1, "log_every_steps": 2, "workers": 1}
    full = presets.PRESETS["full_1p"]
    left_out = ("data_path", "output_dir", "epochs", "total_steps", "max_steps")  # each script is given its own
    values = {name: value for name, value in presets.PRESETS["tiny"].items() if value != full[name]} | ours
    return [f"--{name}={format_value(value)}" for name, value in values.items() if name not in left_out]


started: set[str] = set()  # names of the scripts that have run


def run(*command, cwd: Path, code: int = 0) -> str:
    """The command's output. Ends the smoke run when the exit code is another than `code`."""
    begun = time.perf_counter()
    words = [str(word) for word in command]
    started.update(Path(word).name for word in words[:2])
    environment = {**os.environ, "PYTHON": sys.executable, "NO_REPORT": "1"}  # a page takes seconds
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    shown = f"[{time.perf_counter() - begun:5.1f} s] {cwd.name}$ {' '.join(words)}"
    if done.returncode != code:
        sys.exit(f"{shown}\n{done.stdout}\nsmoke: exit code {done.returncode} instead of {code}")
    print(shown if len(shown) < 200 else f"{shown[:200]}...", flush=True)
    return done.stdout


def must(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"smoke: {what} does not hold")


def pixels(evaluation: Path) -> int:
    """How many labelled pixels the scores of an evaluation are made of."""
    (row,) = map(json.loads, (evaluation / "metrics.jsonl").read_text().splitlines())
    return row["pixels"]


def walk(model: str, is_whole: bool) -> None:
    """Through all scripts of a folder. Not whole: on one device, but for a training on two, and nothing twice."""
    started.clear()
    folder = ROOT / model
    presets = importlib.import_module(f"{model}.presets")
    tiny = tiny_flags(presets)
    work = Path(tempfile.mkdtemp(prefix=f"smoke-{model}-"))
    data = draw(presets.LAYOUT, work / "data", train_images=8, val_images=3, size=(64, 128))
    full, two, speed, scored = (work / name for name in ("full", "two", "speed", "eval"))

    run("bash", "test/train_full_1p.sh", f"--data_path={data}", "--epochs=1", f"--output_dir={full}", *tiny, cwd=folder)
    first = json.loads((full / "result.json").read_text())
    must(first["steps"] == 4 and 0 <= first["best"] <= 1, "one epoch of four steps with a score")
    for name in ("train.log", "metrics.jsonl", "config.json", "checkpoints/last.pt", "checkpoints/best.pt"):
        must((full / name).is_file(), f"{name} is written")

    if is_whole:
        again = ["--epochs=1", f"--output_dir={full}", f"--data_path={data}", *tiny]
        text = run("bash", "test/train_full_1p.sh", "--resume=auto", *again, cwd=folder)
        must("is complete" in text, "a finished run is not trained again")
        run("bash", "test/train_full_1p.sh", *again, cwd=folder)
        must(len(list((work / "backup").iterdir())) == 1, "the older run is moved aside")

    weights = full / "checkpoints" / "best.pt"
    evaluation = [f"--checkpoint={weights}", f"--data_path={data}", f"--output_dir={scored}", *tiny]
    text = run("bash", "test/train_eval_1p.sh", *evaluation, cwd=folder)
    once = json.loads((scored / "result.json").read_text())
    must("Final Train Accuracy : " in text, "the evaluation prints its score")
    processes = 2 if is_whole else 1
    run("bash", "test/train_eval_8p.sh", f"--devices={processes}", *evaluation, cwd=folder)
    again = json.loads((scored / "result.json").read_text())
    must(once["best"] == again["best"] is not None, "both scripts find the same score, each with its processes")
    older = next((work / "backup").glob("eval-*"))
    must(pixels(scored) == pixels(older) > 0, "several processes share out the pixels of one")

    images = importlib.import_module(f"{model}.data").validation_images(data)
    run(
        *(sys.executable, "predict.py", "--checkpoint", weights, "--input", *images),
        *("--output", work / "pictures", "--device=cpu"),
        cwd=folder,
    )
    must(len(list((work / "pictures").rglob("*_overlay.png"))) == 3, "there is an overlay of each image")

    two_processes = ["--devices=2", "--epochs=1", f"--data_path={data}", f"--output_dir={two}", *tiny]
    run("bash", "test/train_full_8p.sh", *two_processes, cwd=folder)
    if is_whole:
        text = run("bash", "test/train_full_8p.sh", f"--data_path={data}", f"--output_dir={two}", cwd=folder, code=2)
        is_one_line = "8 devices" in text and "--devices" in text and len(text.splitlines()) == 1
        must(is_one_line, "too few devices are one line")
    text = run(
        *("bash", "test/train_performance_1p.sh", "--max_steps=4", f"--data_path={data}", f"--output_dir={speed}"),
        *tiny,
        cwd=folder,
    )
    must("Final Performance images/sec : " in text, "the performance script prints images/s")
    must(list(speed.glob("*_perf.log")) != [], "the ModelZoo report is written")
    for script in sorted({path.name for path in folder.glob("test/train_*.sh")} - started):
        few = [f"--devices={processes}", "--max_steps=2"]
        few += [f"--data_path={data}", f"--output_dir={work / script}"]
        run("bash", f"test/{script}", *few, *tiny, cwd=folder)
    shutil.rmtree(work)
    print(f"smoke: {model} passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--own", action="store_true", help="in the first folder, too, what differs between them alone")
    args = parser.parse_args()
    for number, model in enumerate(args.folders):
        walk(model, is_whole=number == 0 and not args.own)


if __name__ == "__main__":
    main()
