"""Run the commands of the documents, as far as they can be run here: python3 -m ci.docs [FILE ...]

By hand, as all of them take an hour on two cores; with names, those of these documents alone. They run one after the
other in a copy of the repository. What is the reader's own is stood for (`ci.stand_ins`): /path/to/... by a few drawn
pictures and files with random weights, an NPU by the simulated one. Trainings end after some steps of small pictures
(`shortened`). What needs other devices, programs or the network is left out, and the reason is said. Blocks of both
languages are equal (ci/tests/test_docs.py), so those of the English documents are run. The last lines have the numbers
of all; the exit code is 1 when a command fails. Needs what training needs, and onnx and onnxruntime for what is about
them.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ci.documents import ENGLISH, Document
from ci.mutations import Tree
from ci.stand_ins import NETWORK_OPTIONS, SIZE, StandIns, names_npu, simulates_npu
from ci.tests.folders import FOLDERS, ROOT, module
from common.args import format_value, parse_args
from common.errors import ExitCode
from common.flags import EITHER_OR
from common.terminal import has_room

LIMIT_S = 600
GRACE_S = 30  # for a command to end in order after that
# what a command begins with or holds -> what it needs that is not here
NEEDS = {
    r"^(python3 -m )?pip install": "the network",
    r"^docker ": "Docker",
    r"^(srun|sbatch) ": "Slurm",
    r"--nnodes": "several machines",
    r"^atc ": "CANN's compiler atc",
    r"--device[= ]cuda|--cuda_graph": "a CUDA device",
    r"ci/test\.sh|test_contract\.py$|ci\.(mutations|faults|docs)": "many minutes; a test by itself",
}
# the same for what may be here; and whether it is
MAY_NEED = {
    r"\.onnx": ("the packages onnx and onnxruntime", lambda: bool(find_spec("onnx") and find_spec("onnxruntime"))),
    r"-m pytest|ci/smoke\.py": ("the package pytest", lambda: bool(find_spec("pytest"))),
    r"\.safetensors": ("the package safetensors", lambda: bool(find_spec("safetensors"))),
    r"--device[= ]npu\b": ("torch 2.13 or later, for the simulated NPU", simulates_npu),
}
TRAINS = re.compile(r"(?:^|/)(?:train\.py|train_(\w+)\.sh|quickstart\.sh)$")
OF_OTHERS = re.compile(r"\.(pth|pkl)\b|--pretrained=\./")  # weights that others have published
TRAINED_WITH = re.compile(r"train_eval|/best\.pt|full_1p/(checkpoints|config)")  # a run that must have been


def left_out(command: str) -> str | None:
    """What a command needs that is not here; None for one that can be run."""
    missing = {pattern: what for pattern, (what, is_here) in MAY_NEED.items() if not is_here()}
    return next((what for pattern, what in (NEEDS | missing).items() if re.search(pattern, command)), None)


def model_of(folder: Path, words: list[str]) -> str:
    """The model that a command is about: by its folder, by what it names, ICNet else."""
    named = [part for word in words for part in re.split(r"[/= ]", word) if part in FOLDERS]
    return folder.name if folder.name in FOLDERS else next(iter(named), "ICNet")


def shortened(folder: Path, words: list[str]) -> list[str]:
    """The flags that make of a training, a benchmark or an export one of seconds on the CPU; none for other commands.

    They are those of the preset `tiny`, as far as the command does not say otherwise itself.
    """
    presets = module(model_of(folder, words), "presets")
    if "common.tools.benchmark" in words:
        steps = ["--steps=2"] if "train" in words else []
        return ["--repetitions=1", "--warmup=1", "--workers=0", *steps, *_unless(words, preset="tiny", device="cpu")]
    if "export.py" in words:
        return _unless(words, size=format_value(SIZE))
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
    if OF_OTHERS.search(" ".join(words)):
        otherwise |= NETWORK_OPTIONS
    return [f"--{name}={format_value(value)}" for name, value in flags.items() if name not in otherwise]


def of_the_command_alone(words: list[str]) -> list[str]:
    """Without --config, whose file is there only after an earlier command has run."""
    return [word for word in words if not word.startswith("--config=")]


def _unless(words: list[str], **flags: str) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items() if f"--{name}" not in " ".join(words)]


def run(stand_ins: StandIns, folder: Path, words: list[str]) -> str:
    """Run a command in the copy; returns what went wrong, in words, or ''."""
    model = model_of(folder, words)
    here = stand_ins.root if folder.name == "docs" else stand_ins.root / folder.resolve().relative_to(ROOT)
    if TRAINED_WITH.search(" ".join(words)):
        try:
            stand_ins.train(model)
        except subprocess.CalledProcessError as error:
            return f"the training whose weights it needs: {_ending(error.returncode, error.stderr or error.stdout)}"
    if "dataset.py" in words:  # the documents have several for one folder, of which a reader takes one
        shutil.rmtree(here / "dataset", ignore_errors=True)
    command = stand_ins.words([*words, *shortened(folder, words)], model)
    if command[0] == "python3":
        command[0] = sys.executable
    elif command[0] == "source":
        command = ["bash", "-c", f"source {command[1]}"]
    # a report.html takes seconds: the quickstart's is drawn
    report = {} if any(word.endswith("quickstart.sh") for word in words) else {"NO_REPORT": "1"}
    environment = {**os.environ, "PYTHON": sys.executable, **report, **stand_ins.environment(words)}
    return _finished(command, here, environment)


def _finished(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Start it and wait for its end; returns '' or what went wrong. It leaves no process behind.

    Without atc, --format=om ends with the exit code for omissions, as docs/export.md says.
    """
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    finally:
        if process.poll() is None:
            _stop(process)
    fine = (ExitCode.DONE, ExitCode.OMISSIONS if "--format=om" in command else ExitCode.DONE)
    return "" if process.returncode in fine else _ending(process.returncode, errors.strip() or output)


def _stop(process: subprocess.Popen) -> None:
    """End it in order, as what torchrun has started ends with it; kill it where that does not help."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
            return


def _ending(code: int, said: str) -> str:
    return f"exit code {code}: {said.strip().rpartition(chr(10))[2]}"


class Outcome(NamedTuple):
    """What became of a command."""

    document: str
    command: str
    state: str  # run, failed or left out
    why: str  # it failed or was left out
    seconds: float


def outcome_of(stand_ins: StandIns, document: str, folder: Path, words: list[str]) -> Outcome:
    """Run a command, or say why it is left out."""
    started, command = time.monotonic(), " ".join(words)
    if reason := left_out(command):
        return Outcome(document, command, "left out", reason, 0.0)
    problem = run(stand_ins, folder, words)
    return Outcome(document, command, "failed" if problem else "run", problem, time.monotonic() - started)


def summary(outcomes: Sequence[Outcome], seconds: float) -> list[str]:
    """The lines at the end: the numbers, the reasons of what was left out, and what failed."""
    states = Counter(outcome.state for outcome in outcomes)
    reasons = Counter(outcome.why for outcome in outcomes if outcome.state == "left out")
    counted = ", ".join(f"{states[state]} {state}" for state in ("run", "failed", "left out"))
    return [
        f"{len(outcomes)} commands, {counted}, in {seconds / 60:.1f} minutes",
        *(f"left out: {count} for {reason}" for reason, count in reasons.most_common()),
        *(
            f"failed: {outcome.document}: {outcome.command}  ({outcome.why})"
            for outcome in outcomes
            if outcome.state == "failed"
        ),
    ]


def show(text: str) -> None:
    """On a terminal, the line that says what runs now; the next one takes its place."""
    if has_room(sys.stderr):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        print(f"\r\x1b[K{text[: columns - 1]}", end="", file=sys.stderr, flush=True)


def run_all(planned: Sequence[tuple[str, Path, list[str]]], outcomes: list[Outcome]) -> None:
    """Run the (document, folder, words) one after the other; each is a line, and is added to `outcomes`."""
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        tree = Tree(Path(folder))
        stand_ins = StandIns(tree.root, Path(folder) / "places", shortened)
        for number, (document, where, words) in enumerate(planned, 1):
            place = f"{number:{len(str(len(planned)))}}/{len(planned)}"
            show(f"{place}  {document}: {' '.join(words)}")
            done = outcome_of(stand_ins, document, where, words)
            outcomes.append(done)
            note = done.why or ("on the simulated NPU" if names_npu(words) else "")
            show("")
            line = f"{place}  {done.state:8} {done.seconds:6.1f} s  {document}: {done.command}"
            print(f"{line}  ({note})" if note else line, flush=True)


def main(files: list[str]) -> int:
    """Returns the exit code."""
    paths = [Path(file).resolve() for file in files] or ENGLISH
    for path in paths:
        if not path.is_file():
            print(f"ci.docs: error: no document {path}; name Markdown files, such as README.md", file=sys.stderr)
            return ExitCode.INPUT
    planned = [(os.path.relpath(path, ROOT), *command[1:]) for path in paths for command in Document(path).commands()]
    outcomes: list[Outcome] = []
    started, code = time.monotonic(), ExitCode.DONE
    try:
        run_all(planned, outcomes)
    except KeyboardInterrupt:
        show("")
        print(f"ci.docs: interrupted after {len(outcomes)} of {len(planned)} commands", file=sys.stderr)
        code = ExitCode.INTERRUPTED
    print("\n".join(summary(outcomes, time.monotonic() - started)))
    return code or ExitCode.FAILED * any(outcome.state == "failed" for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
