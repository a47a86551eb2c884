"""Train a model on the embedded sample, draw what it sees, and show the result. Started by quickstart.sh."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Returns the exit code. arguments: the model's folder (ICNet unless given), then flags of its train.py."""
    models = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
    model = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "ICNet"
    if model not in models:
        print(f"quickstart: error: no model '{model}'; there are {', '.join(models)}", file=sys.stderr)
        return 2
    folder = ROOT / model
    run = folder / "output" / "quickstart"
    pictures = run / "pictures"
    training = subprocess.run([sys.executable, folder / "train.py", "--preset", "quickstart", *arguments])
    if training.returncode:
        return training.returncode
    result = json.loads((run / "result.json").read_text())

    sys.path.insert(0, str(ROOT))
    from common.sample import cityscapes_sample

    drawn = subprocess.run(
        [
            *(sys.executable, folder / "predict.py", "--checkpoint", run / "checkpoints" / "best.pt"),
            *("--input", cityscapes_sample() / "leftImg8bit" / "val", "--output", pictures),
        ],
        stdout=subprocess.DEVNULL,
    )
    if drawn.returncode:
        return drawn.returncode

    rows = {
        "mIoU": f"{result['miou']:.3f}",
        "pixel accuracy": f"{result['pixel_accuracy']:.3f}",
        "images/s (training)": f"{result['images_per_second']:.2f}",
        "duration": f"{result['duration_seconds']:.0f} s",
    }
    print(f"\n{model} on the validation images of the embedded sample")
    for name, value in rows.items():
        print(f"  {name:<22}{value:>10}")
    overlays = sorted(pictures.rglob("*_overlay.png"))
    print(f"\n{len(overlays)} overlays and coloured masks, for example")
    for path in overlays[:3]:
        print(f"  {path.relative_to(ROOT)}")
    print(f"Curves and examples of each evaluation: tensorboard --logdir {(run / 'events').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
