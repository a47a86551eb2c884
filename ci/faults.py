"""What a run survives: kills, spoilt checkpoints, signals, processes that hang, full disks. python3 -m ci.faults

Runs of ICNet, AttentionUNet and the folder in small of the tests are started, disturbed, and started again with
--resume auto. One survives when it comes to its end with the checkpoint of a run that nobody disturbed, bit for bit,
and with the same losses in metrics.jsonl. The table says how many of each kind were tried, what they ended with, and
what was said. `--short`: the folder in small and one process alone, in half a minute.

Runs of one process are forked from this one, which has imported what they need.
"""

import argparse
import contextlib
import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ci.tests import small_folder
from ci.tests.folders import ROOT, command_line, module, parsed
from ci.tests.runs import assert_same_state, forked, last_checkpoint, metric_rows
from common.args import parse_args
from common.record import saving
from common.run import Run
from common.samples.layout import draw
from common.scores import scored
from common.start import launch

SMALL, SCRIPT = "small", "train.py"
PHASES = ("train", "save", "evaluate")
TOLD = "FAULTS_TOLD"  # the file to which a run writes the phases that it comes to
WAIT_S = 300  # for a run: more is a hang
NEVER = 10**6  # occurrences of a phase


class Row(NamedTuple):
    """One kind of fault: how often it was tried, after which a run came to its end, and what was seen."""

    fault: str
    tried: int
    lost: list[str]  # why, for each
    codes: Counter  # exit codes of what was disturbed
    said: str  # in the last of them


class Ended(NamedTuple):
    code: int  # minus the number of the signal that ended it
    said: str
    seconds: float  # since the disturbance


# ---- the runs


def tell_phases(path: Path) -> None:
    """Have this process write down each phase that it comes to, so that it can be disturbed in it."""

    def telling(phase: str, function: Callable) -> Callable:
        def told(*arguments, **options):
            with open(path, "a") as file:
                file.write(f"{phase}\n")
            return function(*arguments, **options)

        return told

    Run.step = telling("train", Run.step)
    saving.Saver.save = telling("save", saving.Saver.save)
    scored.evaluate = telling("evaluate", scored.evaluate)


def one_run(model: str, words: list[str], prepare: Callable[[], None] | None = None) -> None:
    """What `python train.py` does, telling its phases if it is asked to. prepare: what is done before."""
    torch.set_num_threads(1)
    if os.environ.get("RANK", "0") == "0" and (path := os.environ.get(TOLD)):
        tell_phases(Path(path))
    if prepare:
        prepare()
    if model == SMALL:
        launch(small_folder.main, small_folder.build, parse_args(small_folder, words), small_folder)
    else:
        train = module(model, "train")
        launch(train.main, train.build, parsed(model, *words), module(model, "presets"))


def forked_run(model: str, words: list[str], prepare: Callable[[], None] | None) -> None:
    sys.argv = [SCRIPT, *words]
    one_run(model, words, prepare)


class Bench:
    """The folder of all runs of one model, with what they are given."""

    def __init__(self, root: Path, model: str, processes: int = 1):
        self.model, self.processes = model, processes
        self.root = root / f"{model}-{processes}"
        self.root.mkdir(parents=True)
        self.told, self.said = self.root / "told", self.root / "said"
        flags = {"device": "cpu", "deterministic": 1, "workers": 0, "log_every_steps": 1, "seed": 3}
        if model == SMALL:
            flags |= {"epochs": 2 * processes, "max_steps": 8, "save_every_steps": 2}
        else:
            layout = module(model, "presets").LAYOUT
            data = draw(layout, self.root / "data", train_images=8, val_images=3, size=(64, 96))
            flags |= {"preset": "tiny", "data_path": data, "max_steps": 8, "save_every_steps": 3}
        self.flags = flags | ({"devices": processes} if processes > 1 else {})
        text = f"import sys\nfrom ci.faults import one_run\none_run({model!r}, sys.argv[1:])\n"
        (self.root / SCRIPT).write_text(text)  # for torchrun
        self.reference = self.root / "undisturbed"
        begun = time.monotonic()
        end = self.run(self.reference)
        if end.code:
            sys.exit(f"faults: {model} does not train undisturbed:\n{end.said}")
        self.seconds = time.monotonic() - begun
        self.counts = Counter(self.told.read_text().split())

    def words(self, output_dir: Path, flags: dict) -> list[str]:
        return command_line(**{**self.flags, "output_dir": output_dir, **flags})

    def run(self, output_dir: Path, disturb: Callable | None = None, prepare: Callable | None = None, **flags) -> Ended:
        """A run to its end. disturb(process id): called once beside it."""
        for file in (self.told, self.said):
            file.write_text("")
        words = self.words(output_dir, flags)
        environment = {TOLD: str(self.told), "OMP_NUM_THREADS": "1"}
        if self.processes == 1:
            process = forked(self.said, forked_run, self.model, words, prepare, environment=environment)
            pid, wait = process.pid, lambda: (process.join(WAIT_S), process.exitcode)[1]
        else:
            with open(self.said, "w") as said:
                environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
                command = [sys.executable, SCRIPT, *words]
                process = subprocess.Popen(command, cwd=self.root, stdout=said, stderr=said, env=environment)
            pid, wait = process.pid, lambda: waited(process)
        if disturb:
            disturb(pid)
        disturbed = time.monotonic()
        code = wait()
        if code is None:
            process.kill()
        return Ended(NEVER if code is None else code, self.said.read_text(), time.monotonic() - disturbed)

    def phase(self, name: str, occurrence: int, pid: int) -> bool:
        """Wait until a run comes to a phase for the nth time; False where it ends before."""
        pattern, until = f"{name}\n", time.monotonic() + WAIT_S
        while self.told.read_text().count(pattern) < occurrence:
            if ended(pid) or time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    def difference(self, output_dir: Path) -> str:
        """Why a run is not as the one that was not disturbed; '' for one that is."""
        try:
            ours, theirs = last_checkpoint(output_dir), last_checkpoint(self.reference)
            assert_same_state(*({key: of[key] for key in of if key != "made_by"} for of in (ours, theirs)))
            rows = [
                [(row["step"], row["loss"]) for row in metric_rows(folder, "train")]
                for folder in (output_dir, self.reference)
            ]
            return "" if rows[0] == rows[1] else "the losses of metrics.jsonl differ"
        except (AssertionError, OSError, RuntimeError) as error:
            return f"the last checkpoint differs: {error}"[:200]

    def survives(self, output_dir: Path, **flags) -> str:
        """Continue a run to its end; why it was lost, or ''."""
        end = self.run(output_dir, resume="auto", **flags)
        return f"exit code {end.code}: {last_line(end.said)}" if end.code else self.difference(output_dir)


def waited(process: subprocess.Popen) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(WAIT_S)
    return None


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def line_with(said: str, word: str) -> str:
    return next((line for line in said.splitlines() if word in line), last_line(said))


# ---- kills


def kills(bench: Bench, count: int, chance: random.Random) -> Row:
    """kill -9 at random moments of all phases; a run that is killed is continued, and killed again."""
    lost, codes, said, number, output_dir = [], Counter(), "", 0, None
    while sum(codes.values()) < count or output_dir:
        if output_dir is None:
            number += 1
            output_dir = bench.root / f"killed-{number}"
        phase = chance.choice(PHASES)
        # a part of the phases takes milliseconds, a save of a large network a second
        moment = chance.random() * (0.002 if chance.random() < 0.3 else bench.seconds / sum(bench.counts.values()))
        occurrence = NEVER if sum(codes.values()) >= count else 1 + chance.randrange(3)

        def disturb(pid: int, phase=phase, occurrence=occurrence, moment=moment) -> None:
            if occurrence < NEVER and bench.phase(phase, occurrence, pid):
                time.sleep(moment)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        had_checkpoint = (output_dir / "checkpoints" / "last.pt").exists()
        end = bench.run(output_dir, disturb, resume="auto")
        if had_checkpoint and "starts anew" in end.said:
            lost.append(f"{output_dir.name}: its checkpoints were gone")
        said = line_with(end.said, "continuing from") if had_checkpoint else said
        if end.code == -signal.SIGKILL:
            codes[end.code] += 1
            continue
        why = bench.difference(output_dir) if end.code == 0 else f"exit code {end.code}: {last_line(end.said)}"
        if why:
            lost.append(f"{output_dir.name}: {why}")
        shutil.rmtree(output_dir)
        output_dir = None
    return Row(f"kill -9 at random ({bench.model})", sum(codes.values()), lost, codes, said)


# ---- spoilt checkpoints


def torn(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(1, path.stat().st_size)])


def emptied(path: Path, _chance: random.Random) -> None:
    path.write_bytes(b"")


def flipped(path: Path, chance: random.Random) -> None:
    """One bit of it, anywhere."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def with_nan(path: Path, chance: random.Random) -> None:
    content = torch.load(path, weights_only=True)
    tensors = [tensor for tensor in content["model"].values() if tensor.is_floating_point()]
    chance.choice(tensors).view(-1)[:1] = float("nan")
    torch.save(content, path)


def field_gone(path: Path, chance: random.Random) -> None:
    content = torch.load(path, weights_only=True)
    del content[chance.choice(["options", "model", "optimizer", "steps_done", "made_by"])]
    torch.save(content, path)


def spoilt(bench: Bench, spoil: Callable, count: int, chance: random.Random) -> Iterator[Row]:
    """The newest checkpoint of a run is spoilt: the run goes on from the one before, and nobody evaluates it."""
    half = bench.root / "half"
    if not half.exists():
        bench.run(half, max_steps=5)
    lost, codes, said = [], Counter(), ""
    refused, refusals, refusal = [], Counter(), ""
    for number in range(count):
        output_dir = bench.root / f"{spoil.__name__}-{number}"
        shutil.copytree(half, output_dir)
        weights = output_dir / "checkpoints" / "last.pt"
        spoil(weights, chance)
        # a bit of what pads the archive changes nothing that is read: such a file is whole
        harmless = spoil is flipped and not is_refused(weights)
        if not harmless:
            end = bench.run(bench.root / "scored", evaluate=1, checkpoint=weights, resume="", max_steps=None)
            refusals[end.code] += 1
            refusal = last_line(end.said)
            if end.code != 2 or len(end.said.splitlines()) != 1:
                refused.append(f"exit code {end.code}, {len(end.said.splitlines())} lines: {refusal}")
        end = bench.run(output_dir, resume="auto")
        codes[end.code] += 1
        said = line_with(end.said, "passed over")
        if why := bench.difference(output_dir) if end.code == 0 else f"exit code {end.code}: {last_line(end.said)}":
            lost.append(f"{output_dir.name}: {why}")
        elif not harmless and "passed over" not in end.said:
            lost.append(f"{output_dir.name}: nothing is said of it")
        shutil.rmtree(output_dir)
    words = spoil.__name__.replace("_", " ")
    yield Row(f"checkpoint {words}, continued", count, lost, codes, said)
    yield Row(f"checkpoint {words}, evaluated", sum(refusals.values()), refused, refusals, refusal)


def is_refused(path: Path) -> bool:
    from common.errors import InputError
    from common.record.checkpoint import read

    try:
        read(path)
    except InputError:
        return True
    return False


# ---- signals


def signals(bench: Bench, numbers: list[signal.Signals], chance: random.Random) -> Iterator[Row]:
    """Each signal in each phase; the run ends in order, or saves and goes on, and then comes to its end."""
    for number in numbers:
        expected = 0 if number == signal.SIGUSR1 else 3
        lost, codes, slowest, said = [], Counter(), 0.0, ""
        for phase in PHASES:
            output_dir = bench.root / f"signal-{phase}"

            def disturb(pid: int, phase=phase, number=number) -> None:
                if bench.phase(phase, 1 + (phase == "train"), pid):
                    time.sleep(chance.random() * 0.01)
                    os.kill(pid, number)

            end = bench.run(output_dir, disturb)
            codes[end.code] += 1
            said, slowest = line_with(end.said, number.name if expected else "saved after"), max(slowest, end.seconds)
            if end.code != expected:
                lost.append(f"in {phase}: exit code {end.code} and not {expected}: {last_line(end.said)}")
            if why := bench.survives(output_dir):
                lost.append(f"in {phase}: {why}")
            shutil.rmtree(output_dir)
        end_time = f" in {slowest:.1f} s at most" if expected else ""
        name = f"{number.name} in {', '.join(PHASES)} ({bench.model}, {bench.processes})"
        yield Row(name, len(PHASES), lost, codes, f"ended{end_time}: {said}" if expected else said)


# ---- several processes


def processes_of(pid: int) -> list[int]:
    """The processes that torchrun has started, by their rank."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranks = {}
    for child in children:
        with contextlib.suppress(OSError):
            found = re.search(rb"(?:^|\0)LOCAL_RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes())
            if found:
                ranks[int(found[1])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]


def ranks(bench: Bench, number: signal.Signals, expected: str, **flags) -> Row:
    """One of two processes is killed, or stopped: the job ends, says so, and goes on when it is started again."""
    output_dir = bench.root / f"rank-{number.name}"

    def disturb(pid: int) -> None:
        if bench.phase("train", 3, pid):
            os.kill(processes_of(pid)[1], number)

    end = bench.run(output_dir, disturb, **flags)
    lost = []
    if end.code != 1 or "Traceback" in end.said or not re.search(expected, end.said):
        lost.append(f"exit code {end.code}: {last_line(end.said)}")
    if why := bench.survives(output_dir):
        lost.append(why)
    said = f"ended in {end.seconds:.1f} s: {last_line(end.said)}"
    return Row(f"rank 1 of 2 {number.name} ({bench.model})", 1, lost, Counter([end.code]), said)


def restarted(bench: Bench) -> Row:
    """One of two processes is killed, and --max_restarts starts them anew: the same command comes to its end."""
    output_dir = bench.root / "restarted"

    def disturb(pid: int) -> None:
        if bench.phase("save", 1, pid) and bench.phase("train", 5, pid):
            os.kill(processes_of(pid)[1], signal.SIGKILL)

    end = bench.run(output_dir, disturb, max_restarts=1)
    why = bench.difference(output_dir) if end.code == 0 else f"exit code {end.code}: {last_line(end.said)}"
    if not why and "continuing from" not in end.said:
        why = "it did not go on where it was"
    said = line_with(end.said, "continuing from")
    return Row("rank 1 of 2 killed, --max_restarts 1", 1, [why] if why else [], Counter([end.code]), said)


def machines(bench: Bench) -> Row:
    """Two launchers as two machines, one of which is killed: the other one ends and says so; both are started again."""
    output_dir = bench.root / "machines"

    def start(**flags) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        bench.told.write_text("")
        environment = {**os.environ, TOLD: str(bench.told), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        launchers = []
        for rank in range(2):
            where = {"nnodes": 2, "node_rank": rank, "master_addr": "127.0.0.1", "master_port": port, "devices": 1}
            command = [sys.executable, SCRIPT, *bench.words(output_dir, {**where, **flags})]
            with open(bench.root / f"machine-{rank}", "w") as said:
                launchers.append(subprocess.Popen(command, cwd=bench.root, stdout=said, stderr=said, env=environment))
        return launchers

    def end(launchers: list[subprocess.Popen]) -> tuple[list[int | None], str]:
        codes = [waited(launcher) for launcher in launchers]
        for launcher, code in zip(launchers, codes, strict=True):
            if code is None:
                launcher.kill()
        return codes, (bench.root / "machine-0").read_text()

    launchers = start()
    if bench.phase("save", 1, launchers[0].pid) and bench.phase("train", 4, launchers[0].pid):
        launchers[1].kill()
    killed = time.monotonic()
    codes, said = end(launchers)
    seconds, lost = time.monotonic() - killed, []
    if codes != [1, -signal.SIGKILL] or "Traceback" in said or "process 1" not in last_line(said):
        lost.append(f"exit codes {codes}: {last_line(said)}")
    again, said_again = end(start(resume="auto"))
    if again != [0, 0] or "continuing from" not in said_again:
        lost.append(f"started again: exit codes {again}: {last_line(said_again)}")
    elif why := bench.difference(output_dir):
        lost.append(why)
    said = f"the other one ended in {seconds:.1f} s: {last_line(said)}"
    return Row(f"machine 1 of 2 killed and back ({bench.model})", 1, lost, Counter(codes[:1]), said)


# ---- disks and file systems


def full_disk(bench: Bench) -> Iterator[Row]:
    """A small disk that fills up while a run writes to it: training goes on, and the checkpoint is made later."""
    disk = bench.root / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        yield Row("disk full", 0, [], Counter(), f"skipped: {mounted.stderr.strip()}")
        return
    ballast = disk / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))

    try:
        for name, emptied_in in (("for good", None), ("for a while", 6)):
            output_dir = disk / name.replace(" ", "-")

            def disturb(pid: int, emptied_in=emptied_in) -> None:
                bench.phase("train", 3, pid)
                fill()
                if emptied_in and bench.phase("train", emptied_in, pid):
                    ballast.unlink()

            end = bench.run(output_dir, disturb, prepare=slowly, keep=1)
            expected = 0 if emptied_in else 1
            lost = [] if end.code == expected else [f"exit code {end.code}: {last_line(end.said)}"]
            if "Traceback" in end.said:
                lost.append(f"a traceback: {last_line(end.said)}")
            ballast.unlink(missing_ok=True)
            why = bench.difference(output_dir) if emptied_in else bench.survives(output_dir)
            lost += [why] if why else []
            said = last_line(end.said) if expected else line_with(end.said, "warning")
            yield Row(f"disk full {name}", 1, lost, Counter([end.code]), said)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def slowly() -> None:
    """Steps that leave the time for a disk to fill."""
    real = Run.step

    def step(run, losses) -> None:
        real(run, losses)
        time.sleep(0.1)

    Run.step = step


def failing(pattern: str, number: int, from_step: int = 0, lasts: bool = False) -> Callable[[], None]:
    """Have a file whose name matches fail once, as a file server does; or, if it lasts, all such files from then on."""

    def prepare() -> None:
        import builtins

        real, failed, told = builtins.open, [], Path(os.environ[TOLD])

        def opened(path, mode="r", *arguments, **options):
            due = (lasts or not failed) and "r" in mode and re.search(pattern, str(path))
            if due and told.read_text().count("train\n") >= from_step:
                failed.append(path)
                raise OSError(number, os.strerror(number), str(path))
            return real(path, mode, *arguments, **options)

        builtins.open = opened

    return prepare


def file_servers(bench: Bench) -> Iterator[Row]:
    """A file that is not given the first time, and a file system that knows no permissions."""
    cases = {"a checkpoint": r"last\.pt$"}
    if bench.model != SMALL:
        cases |= {"a picture or label": r"\.(png|jpg)$"}
    for what, pattern in cases.items():
        output_dir = bench.root / f"once-{len(what)}"
        bench.run(output_dir, max_steps=4)
        end = bench.run(output_dir, prepare=failing(pattern, errno.ESTALE), resume="auto")
        why = bench.difference(output_dir) if end.code == 0 else f"exit code {end.code}: {last_line(end.said)}"
        lost = [why] if why else []
        yield Row(f"ESTALE once at {what} ({bench.model})", 1, lost, Counter([end.code]), last_line(end.said))

    if bench.model != SMALL:
        output_dir = bench.root / "for-good"
        end = bench.run(output_dir, prepare=failing(cases["a picture or label"], errno.EIO, from_step=3, lasts=True))
        lost = [] if end.code == 3 else [f"exit code {end.code}: {last_line(end.said)}"]
        if why := bench.survives(output_dir):
            lost.append(why)
        said = line_with(end.said, "times)")
        yield Row(f"EIO for good at a picture ({bench.model})", 1, lost, Counter([end.code]), said)

    def refusing() -> None:
        def refuse(*_arguments, **_options):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        os.chmod = refuse

    end = bench.run(bench.root / "chmod", prepare=refusing)
    why = bench.difference(bench.root / "chmod") if end.code == 0 else last_line(end.said)
    yield Row(f"chmod refused ({bench.model})", 1, [why] if why else [], Counter([end.code]), last_line(end.said))


# ---- the table


def cases(root: Path, short: bool, count: int, chance: random.Random) -> Iterator[Row]:
    small = Bench(root, SMALL)
    yield kills(small, 6 if short else count // 4, chance)
    for spoil, tries in {torn: 12, emptied: 1, flipped: 24, with_nan: 6, field_gone: 6}.items():
        yield from spoilt(small, spoil, 1 if short else tries, chance)
    stops = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    yield from signals(small, stops[:1] if short else [*stops, signal.SIGHUP], chance)
    yield from file_servers(small)
    yield from full_disk(small)
    if short:
        return
    for model in ("AttentionUNet", "ICNet"):
        bench = Bench(root, model)
        yield kills(bench, count // (2 if model == "AttentionUNet" else 4), chance)
        yield from signals(bench, stops[:1], chance)
        yield from file_servers(bench) if model == "AttentionUNet" else ()
        shutil.rmtree(bench.root)
    two = Bench(root, SMALL, processes=2)
    yield from signals(two, stops, chance)
    yield ranks(two, signal.SIGKILL, "was ended by signal 9")
    yield ranks(two, signal.SIGSTOP, "process 1", dist_timeout=5)
    yield restarted(two)
    yield machines(two)


def show(row: Row) -> None:
    """One line of the table, and one for each run that was lost."""
    codes = ", ".join(f"{code} x {times}" if times > 1 else str(code) for code, times in sorted(row.codes.items()))
    survived = row.tried - min(len(row.lost), row.tried)
    print(f"{row.fault:<48} {row.tried:>5} {survived:>8} {len(row.lost):>4}  {codes:<16} {row.said}", flush=True)
    for why in row.lost:
        print(f"    LOST {why}", flush=True)


def main(words: list[str] | None = None) -> int:
    """Try all, print the table, and return 1 if a run was lost."""
    parser = argparse.ArgumentParser(prog="python3 -m ci.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="the folder in small alone: half a minute")
    parser.add_argument("--kills", type=int, default=120, help="how many, of all models together; default: 120")
    parser.add_argument("--seed", type=int, default=0, help="of when and where; default: 0")
    args = parser.parse_args(words)
    torch.set_num_threads(1)  # a process with threads cannot be forked
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)  # imports much, the first time
    print(f"{'fault':<48} {'tried':>5} {'survived':>8} {'lost':>4}  {'exit code':<16} said", flush=True)
    rows, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        for row in cases(Path(root), args.short, args.kills, random.Random(args.seed)):
            rows.append(row)
            show(row)
    tried, lost = sum(row.tried for row in rows), sum(len(row.lost) for row in rows)
    print(f"{tried} tried, {lost} lost; {(time.monotonic() - begun) / 60:.1f} minutes")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
