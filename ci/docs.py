"""Run the commands of the documents, as far as they can be run here: python3 -m ci.docs [FILE ...]

By hand, as all of them take an hour on two cores; with names, those of these documents alone. They run one after the
other in a copy of the repository, on a few drawn pictures in the place of /path/to/..., and trainings end after some
steps of small pictures (`shortened`). What needs other data, devices or the network is left out, and the reason is
said. Blocks of both languages are equal (ci/tests/test_docs.py), so those of the English documents are run. The exit
code is 1 when a command fails.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ci.mutations import Tree
from ci.tests.folders import FOLDERS, ROOT, module
from ci.tests.test_docs import ENGLISH, Document
from common.args import format_value, parse_args
from common.flags import EITHER_OR
from common.samples.layout import draw

LIMIT_S = 600
# what a command begins with or holds -> what it needs that is not here
NEEDS = {
    r"^(python3 -m )?pip install": "the network",
    r"^source ": "a shell of its own",
    r"^docker ": "Docker",
    r"^(srun|sbatch) ": "Slurm",
    r"--nnodes": "several machines",
    r"--device[= ]npu|--soc_version|^atc ": "an NPU or its software",
    r"--device[= ]cuda|--cuda_graph": "a CUDA device",
    r"\.pth|\.pkl|--pretrained=\./": "weights that others have published",
    r"camvid|full_size": "large pictures",
    r"weights\.json": "weights of classes of one's own",
    r"pascal_aug": "the data set SBD",
    r"dataset\.py$": "the data set ISIC 2018",
    r"ci/test\.sh|ci/smoke\.py|pytest|ci\.(mutations|faults|foreign_weights)": "many minutes; a test by itself",
}
WITHOUT_ONNX = r"\.onnx"
TRAINS = re.compile(r"(?:^|/)(?:train\.py|train_(\w+)\.sh|quickstart\.sh)$")


def left_out(command: str) -> str | None:
    """What a command needs that is not here; None for one that can be run."""
    needs = NEEDS if importlib.util.find_spec("onnx") else {**NEEDS, WITHOUT_ONNX: "the package onnx"}
    return next((what for pattern, what in needs.items() if re.search(pattern, command)), None)


def model_of(folder: Path, words: list[str]) -> str:
    """The model that a command is about: by its folder, by what it names, ICNet else."""
    named = [part for word in words for part in re.split(r"[/= ]", word) if part in FOLDERS]
    return folder.name if folder.name in FOLDERS else next(iter(named), "ICNet")


def shortened(folder: Path, words: list[str]) -> list[str]:
    """The flags that make of a training or a benchmark one of seconds on the CPU; none for other commands.

    They are those of the preset `tiny`, as far as the command does not say otherwise itself.
    """
    presets = module(model_of(folder, words), "presets")
    if "common.tools.benchmark" in words:
        return ["--repetitions=1", "--warmup=1", "--workers=0", *_unless(words, preset="tiny", device="cpu")]
    script = next((index for index, word in enumerate(words[:2]) if TRAINS.search(word)), None)
    if script is None:
        return []
    rest = of_the_command_alone(words[script + 1 :])
    if words[script].endswith("quickstart.sh"):
        rest = ["--preset=quickstart", *(word for word in rest if word not in FOLDERS)]
    elif name := TRAINS.search(words[script])[1]:
        rest = [f"--preset={name}", *rest]
    args = parse_args(presets, rest)
    default = next(iter(presets.PRESETS.values()))
    flags = {name: value for name, value in presets.PRESETS["tiny"].items() if value != default[name]}
    flags |= {"device": "cpu", "workers": 0, "max_steps": 30 if args.prof else 4}
    if args.devices > 2 and not args.device_list:
        flags["devices"] = 2
    otherwise = {*args.given, "data_path", "output_dir"}
    otherwise |= {one for pair in EITHER_OR for one, other in (pair, pair[::-1]) if other in args.given}
    return [f"--{name}={format_value(value)}" for name, value in flags.items() if name not in otherwise]


def of_the_command_alone(words: list[str]) -> list[str]:
    """Without --config, whose file is there only after an earlier command has run."""
    return [word for word in words if not word.startswith("--config=")]


def _unless(words: list[str], **flags: str) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items() if f"--{name}" not in " ".join(words)]


class Places:
    """What stands for /path/to/... in a copy of the repository at `root`."""

    def __init__(self, root: Path, scratch: Path):
        self.root, self.scratch = root, scratch
        data = {
            name: draw(layout, scratch / name, train_images=72, val_images=4, size=(64, 96))
            for name, layout in (("cityscapes", "cityscapes"), ("VOCdevkit", "voc"), ("dataset", "isic"))
        }
        pictures = data["cityscapes"] / "leftImg8bit"
        shutil.copytree(pictures / "val", pictures / "test")  # a split without labels
        own = scratch / "folder"
        shutil.copytree(data["dataset"] / "train", own / "images")
        shutil.copytree(data["dataset"] / "train_GT", own / "masks")
        self.known = {
            **data,
            "folder": own,
            "pictures": pictures / "val",
            "ISIC2018_Task1-2_Training_Input": data["dataset"] / "train",
            "ISIC2018_Task1_Training_GroundTruth": data["dataset"] / "train_GT",
        }

    def put_into(self, word: str, model: str) -> str:
        """The word with places that there are."""
        known = {**self.known, "best.pt": self.weights(model)}
        return re.sub(r"/path/to/([\w.-]+)", lambda found: str(known.get(found[1], self.scratch / found[1])), word)

    def weights(self, model: str) -> Path:
        """Where the full run of one device leaves its best weights."""
        values = module(model, "presets").PRESETS["eval_1p"]
        return self.root / model / values["checkpoint"]

    def train(self, model: str) -> None:
        """Leave the weights of a full run, shortened, for commands that begin with some. Raises CalledProcessError."""
        if not self.weights(model).exists():
            folder = self.root / model
            words = ["train.py", "--preset=full_1p", f"--data_path={self.known[self._data(model)]}"]
            command = [sys.executable, *words, *shortened(folder, ["python3", *words])]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)

    def _data(self, model: str) -> str:
        return {"voc": "VOCdevkit", "isic": "dataset"}.get(module(model, "presets").LAYOUT, "cityscapes")


def run(places: Places, folder: Path, words: list[str]) -> str:
    """Run a command in the copy; returns what went wrong, in words, or ''."""
    model = model_of(folder, words)
    here = places.root if folder.name == "docs" else places.root / folder.resolve().relative_to(ROOT)
    if re.search(r"train_eval|/best\.pt|full_1p/(checkpoints|config)", " ".join(words)):
        try:
            places.train(model)
        except subprocess.CalledProcessError as error:
            return f"the training whose weights it needs: exit code {error.returncode}"
    command = [places.put_into(word, model) for word in [*words, *shortened(folder, words)]]
    command[0] = sys.executable if command[0] == "python3" else command[0]
    environment = os.environ | {"PYTHON": sys.executable}
    try:
        done = subprocess.run(
            command,
            cwd=here,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"exit code {done.returncode}: {said[-1] if said else ''}" if done.returncode else ""


def main(files: list[str]) -> int:
    """Returns the exit code."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        tree = Tree(Path(folder))
        places = Places(tree.root, Path(folder) / "places")
        for path in [Path(file).resolve() for file in files] or ENGLISH:
            for _, where, words in Document(path).commands():
                text = " ".join(words)
                started, reason = time.monotonic(), left_out(text)
                problem = "" if reason else run(places, where, words)
                state = "left out" if reason else "failed" if problem else "run"
                counts[state] += 1
                seconds, document = time.monotonic() - started, os.path.relpath(path, ROOT)
                why = f"  ({reason or problem})" if reason or problem else ""
                print(f"{state:8} {seconds:6.1f} s  {document}: {text}{why}", flush=True)
    print(f"{counts['run']} run, {counts['failed']} failed, {counts['left out']} left out")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
