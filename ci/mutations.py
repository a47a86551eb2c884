"""Plants one fault after another into a copy of the tree, and prints which test finds each of them.

    python3 -m ci.mutations [NAME ...] [--jobs 2]

Not part of the tests: it shows that the tests see the recipes and the machinery. The faults are those of
`ci.mutation_table`; NAME takes those of a folder or a file alone. First the tests concerned run without any fault: a
test that fails anyway finds nothing. All of it takes one core a quarter of an hour. The exit code is 1 when a fault
is not found or has no single place in its file.
"""

import argparse
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ci.mutation_table import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
TESTS = "ci/tests/"
LIMIT_S = 400  # for the tests of one fault: those that wait for ever find it in no words
OF_PYTEST = "-x -q -p no:cacheprovider --tb=no".split()
# Bytecode is told from its source by second and size: a fault of the same length could be passed over.
ENVIRONMENT = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


class Outcome(NamedTuple):
    """What the tests of a fault came to."""

    failed: bool  # a test has failed, rather than all passed or none run
    words: str  # the first test that failed, or what happened instead


class Tree:
    """A copy of the repository's files with at most one fault in it, and the tests that run there."""

    def __init__(self, folder: Path):
        self.root, self.scratch, self._process = folder / "tree", folder / "scratch", None
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, names):
            if (ROOT / name).is_file():  # it may be deleted and still be in the index
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)

    @contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        path = self.root / fault.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")

    def run(self, tests: str) -> Outcome:
        """The tests up to the first that fails."""
        words = [TESTS + word if ".py" in word else word for word in shlex.split(tests)]
        command = [sys.executable, "-m", "pytest", *OF_PYTEST, f"--basetemp={self.scratch}", *words]
        self._process = subprocess.Popen(
            command, cwd=self.root, env=ENVIRONMENT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = self._process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            return Outcome(False, f"no end after {LIMIT_S} s")
        if self._process.returncode == 0:
            return Outcome(False, "")
        failed = re.search(rf"^(?:FAILED|ERROR) (?:{TESTS})?(\S+::.*?)(?: - .*)?$", output, re.MULTILINE)
        if self._process.returncode == 1 and failed:
            return Outcome(True, failed[1])
        last_line = output.strip().rpartition("\n")[2]
        return Outcome(False, f"pytest ended with {self._process.returncode}: {last_line}")

    def stop(self) -> None:
        """End the tests that run, and what they have started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Trees:
    """As many copies as jobs; each is used by one thread at a time."""

    def __init__(self, folder: Path, jobs: int):
        self.all = [Tree(folder / str(job)) for job in range(jobs)]
        self._free = queue.SimpleQueue()
        for tree in self.all:
            self._free.put(tree)

    def run(self, tests: str, fault: Fault | None = None) -> Outcome:
        """The tests in a copy without any fault, or with this one."""
        tree = self._free.get()
        try:
            if fault is None:
                return tree.run(tests)
            with tree.with_fault(fault):
                return tree.run(tests)
        finally:
            self._free.put(tree)


def line_of(fault: Fault) -> int | None:
    """Where what is replaced begins, counted from 1; None unless it is there exactly once."""
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    return text[: text.index(fault.old)].count("\n") + 1 if text.count(fault.old) == 1 else None


def chosen(names: list[str]) -> list[Fault]:
    """The faults of these folders and files, or all; SystemExit for a name that has none."""
    for name in names:
        if not any(fault.file.startswith(name) for fault in FAULTS):
            sys.exit(f"ci.mutations: no fault in {name}; name a folder or a file, such as ICNet or common/step/amp.py")
    return [fault for fault in FAULTS if not names or fault.file.startswith(tuple(names))]


def file_of(tests: str) -> str:
    """The file of tests, without what is chosen of it."""
    return tests.partition(" -k ")[0]


def by_file(lines: set[str]) -> dict[str, str]:
    """file of tests -> one line for pytest with all that these `lines` choose of it: it is imported once."""
    choices: dict[str, list[str]] = {}
    for tests in sorted(lines):
        choices.setdefault(file_of(tests), []).append(tests.partition(" -k ")[2].strip("'"))
    return {
        file: f"{file} -k '{' or '.join(f'({choice})' for choice in chosen)}'" if all(chosen) else file
        for file, chosen in choices.items()
    }


def show(place: str, what: str, found: str) -> None:
    """A row of the table."""
    print(f"{place:<34}  {what:<68}  {found}", flush=True)


def plant(faults: list[Fault], trees: Trees, pool: ThreadPoolExecutor) -> int:
    """Run the tests of each fault and print the table; how many are not caught."""
    lines = {fault: line_of(fault) for fault in faults}
    concerned = by_file({fault.tests for fault in faults if lines[fault]})
    alone = dict(zip(concerned, pool.map(trees.run, concerned.values()), strict=True))

    def caught(fault: Fault) -> tuple[bool, str]:
        if lines[fault] is None:
            return False, "what is to be replaced is not there exactly once"
        before = alone[file_of(fault.tests)]
        if before.failed or before.words:
            return False, f"without the fault too: {before.words}"
        return trees.run(fault.tests, fault)

    show("place", "fault", "caught by")
    missed = 0
    for fault, (found, words) in zip(faults, pool.map(caught, faults), strict=True):
        missed += not found
        show(f"{fault.file}:{lines[fault] or '?'}", fault.what, words if found else f"NOT CAUGHT {words}".rstrip())
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m ci.mutations", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="folders or files whose faults to plant; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="how many faults are tried at a time; default: 2")
    args = parser.parse_args()
    faults, started = chosen(args.names), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        trees, pool = Trees(Path(folder), args.jobs), ThreadPoolExecutor(args.jobs)
        try:
            missed = plant(faults, trees, pool)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for tree in trees.all:
                tree.stop()
            pool.shutdown()
    minutes = (time.monotonic() - started) / 60
    print(f"{len(faults)} faults, {len(faults) - missed} caught, {missed} not caught; {minutes:.1f} minutes")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
