"""Train a model on the embedded sample, draw what it sees, and show the result. Started by quickstart.sh."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"miou": "mIoU"}


def main(arguments: list[str]) -> int:
    """Returns the exit code. arguments: the model's folder (ICNet unless given), then flags of its train.py."""
    models = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
    model = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "ICNet"
    if model not in models:
        print(f"quickstart: error: no model '{model}'; there are {', '.join(models)}", file=sys.stderr)
        return 2
    folder = ROOT / model
    sys.path.insert(0, str(ROOT))
    from common.args import format_value, parse_args

    # answers --help and a wrong flag at once, and says where the run will be
    args = parse_args(importlib.import_module(f"{model}.presets"), ["--preset", "quickstart", *arguments])
    run = Path(args.output_dir)
    pictures = run / "pictures"
    if code := run_to_the_end([sys.executable, folder / "train.py", "--preset", "quickstart", *arguments]):
        return code
    result = json.loads((run / "result.json").read_text())

    images = importlib.import_module(f"{model}.data").validation_images(args.data_path)
    weights = run / "checkpoints" / ("best.pt" if args.validate else "last.pt")
    drawing = [
        *(sys.executable, folder / "predict.py", "--checkpoint", weights),
        *("--input", *images, "--output", pictures),
        f"--scales={format_value(args.scales)}",  # the size at which the network was scored
    ]
    if code := run_to_the_end(drawing, stdout=subprocess.DEVNULL):
        return code

    rows = {TITLES.get(name, name.replace("_", " ")): (result.get(name), ".3f") for name in result["scores"]}
    rows |= {
        "images/s (training)": (result["images_per_second"], ".2f"),
        "duration": (result["duration_seconds"], ".0f"),
    }
    where = "the embedded sample" if args.data_path == "sample" else args.data_path
    print(f"\n{model} on the validation images of {where}")
    for name, (value, form) in rows.items():
        shown = "n/a" if value is None else format(value, form)
        print(f"  {name:<28}{shown:>8}{' s' if name == 'duration' else ''}")
    if result.get("classes"):
        print(f"  for comparison, {constant_prediction(result)}")
    overlays = sorted(pictures.rglob("*_overlay.png"))
    needs = "" if find_spec("tensorboard") else " (needs pip install tensorboard)"
    print(
        f"\nCurves and examples of each evaluation: tensorboard --logdir {os.path.relpath(run / 'events', ROOT)}{needs}"
    )
    if (run / "report.html").is_file():
        print(f"Scores, curves and pictures of the run: {os.path.relpath(run / 'report.html', ROOT)}")
    print(f"{len(overlays)} overlays and coloured masks, for example")
    for path in overlays[:3]:
        print(f"  {os.path.relpath(path, ROOT)}")
    print(f"For pictures of your own: {prediction(folder, weights)}")
    return 0


def prediction(folder: Path, weights: Path) -> str:
    """The command that predicts a user's own pictures, for the root of the repository.

    folder: the model's. weights: the checkpoint of the run. It names this Python: another one may lack what is needed.
    """
    paths = (Path(sys.executable), folder / "predict.py", weights)
    words = [str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in paths]
    return shlex.join([*words[:2], f"--checkpoint={words[2]}", "--input=FOLDER"])


def constant_prediction(result: dict) -> str:
    """What is scored without looking at the pictures: the most frequent class of their labels everywhere, in one line.

    result: of result.json, with its table of classes. Its IoU is its share of the labelled pixels, that of every other
    class 0; the mean is over the classes that are in the labels. Jaccard is the IoU of the last class.
    """
    pixels = {name: row["truth_pixels"] for name, row in result["classes"].items() if row["truth_pixels"]}
    name = max(pixels, key=pixels.get)
    accuracy = pixels[name] / sum(pixels.values())
    score = {"mIoU": accuracy / len(pixels)}
    if "jaccard" in result["scores"]:
        score = {"jaccard": accuracy if name == list(result["classes"])[-1] else 0.0}
    ((title, value),) = score.items()
    return f"'{name}' everywhere: {title} {value:.3f}, pixel accuracy {accuracy:.3f}"


def run_to_the_end(command: list, stdout: int | None = None) -> int:
    """Returns the exit code of command, as a shell counts it: 128 + N after signal N.

    Ctrl-C goes to every process of the terminal: command ends by itself, with its own line, and is waited for.
    """
    # a handler of ours is not inherited, as SIG_IGN would be
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(command, stdout=stdout).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # between two commands
        print("quickstart: interrupted", file=sys.stderr)
        sys.exit(130)
