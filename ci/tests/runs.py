"""Runs in processes of their own, what a run leaves in its folder, and how two of them are compared."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch


def forked(said: Path, function: Callable, *arguments, environment: dict[str, str] | None = None, **options):
    """Begin a function in a copy of this process, which saves it the imports. said: the file for what it prints."""

    def call() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)  # as a new process has it, whatever this one has done before
        os.environ.update(environment or {})
        with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            function(*arguments, **options)

    process = multiprocessing.get_context("fork").Process(target=call, daemon=True)
    process.start()
    return process


def in_two_processes(folder: Path, function: Callable, *arguments, **options) -> None:
    """Do the same in both of two processes that find each other, as torchrun starts them. folder: for what they say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    files = [folder / f"said_by_{rank}" for rank in range(2)]
    processes: list[BaseProcess] = [
        forked(file, function, *arguments, **options, environment={**where, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], "\n".join(file.read_text() for file in files)


def as_if_started(script: Path, *words, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
    """What a script prints and its exit code, in a copy of this process, which saves it seconds of imports.

    environment: all of its variables, PYTHONPATH among them; None: those of this process. That the script finds what it
    imports is not shown: here all of it can be imported.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if child == 0:
            os._exit(_code_of(script, [str(word) for word in words], environment, out.fileno(), error.fileno()))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess([script, *words], code, out.read(), error.read())


def _code_of(script: Path, words: list[str], environment: Mapping[str, str] | None, out: int, error: int) -> int:
    """Run the script; its exit code. It takes the process for its own."""
    os.dup2(out, 1)
    os.dup2(error, 2)
    with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
            sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        sys.argv = [str(script), *words]
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def last_checkpoint(output_dir) -> dict:
    """checkpoints/last.pt."""
    return torch.load(Path(output_dir) / "checkpoints" / "last.pt", weights_only=True)


def metric_rows(output_dir, kind: str) -> list[dict]:
    """The rows of metrics.jsonl of one kind, "train" or "eval", without the times, which no two runs share."""
    rows = [json.loads(line) for line in (Path(output_dir) / "metrics.jsonl").read_text().splitlines()]
    times = ("time", "elapsed_seconds", "rated")
    return [{name: row[name] for name in row if name not in times} for row in rows if row["kind"] == kind]


def flat(value, name="") -> dict:
    """Every leaf of nested dictionaries and lists, by its path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{name}/{key}").items()}
    return {name: value}


def assert_same_state(ours: dict, theirs: dict) -> None:
    """Two checkpoints bit for bit: weights, statistics, momentum, scaler, schedule."""
    # a run that stops on the way is scored there, once more
    kept = [key for key in ours if key not in ("best", "evaluations_since_best")]
    ours, theirs = flat({key: ours[key] for key in kept}), flat({key: theirs[key] for key in kept})
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert same, name


def assert_same_statistics(run: Path, other_run: Path) -> dict:
    """The batch norms of two runs have seen the same images, at least one; returns the last checkpoint of `run`."""
    state, other = last_checkpoint(run), last_checkpoint(other_run)
    names = [name for name in state["model"] if "running_" in name or "num_batches" in name]
    assert state["steps_done"] == other["steps_done"] > 0 and names
    for name in names:
        ours, theirs = state["model"][name], other["model"][name]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    return state
