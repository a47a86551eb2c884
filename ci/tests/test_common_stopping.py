"""common/device/stopping.py, agreement.py and relay.py: what ends a run in order, from a flag to two processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ci.tests import small_folder
from ci.tests.runs import assert_same_state, in_two_processes, last_checkpoint, metric_rows
from ci.tests.small_folder import arguments, build
from common.device import stopping
from common.device.agreement import Agreement
from common.device.relay import CHECKED, Relay, introduce
from common.device.stopping import OUT_OF_TIME, SAVE, Orders, Stop, stay_out_of_it
from common.device.world import World, setup
from common.errors import Stopped
from common.record.lines import Lines
from common.run import Run
from common.start import launch

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(torch.device("cpu"))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No torchrun, wherever the tests run."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", CHECKED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """The exit codes with which this process would have ended at once."""
    codes = []
    monkeypatch.setattr(stopping, "end_at_once", lambda text, code: codes.append(int(code)))
    return codes


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now.seconds, time=lambda: now.seconds))
    return now


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# ---- the flag


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sets_a_flag_and_raises_nothing(number, ended):
    before = signal.getsignal(number)
    with Stop().listening() as stop:
        stop.begin()
        assert stop.code == 0
        send(number)
        assert stop.code > OUT_OF_TIME and not ended
        words = stopping.words(stop.code, 0)
    assert words == ("interrupted" if number == signal.SIGINT else f"stopped by {number.name}")
    assert signal.getsignal(number) is before


def test_a_wish_to_save_is_taken_once(ended):
    with Stop().listening() as stop:
        send(signal.SIGUSR1)  # also before the training: it is fulfilled after the first step
    assert [stop.take(), stop.take()] == [SAVE, 0] and not ended


def test_the_time_of_a_run_is_counted_from_its_beginning(clock):
    stop = Stop(max_minutes=2, since=clock.seconds - 60)
    assert stop.code == 0
    clock.seconds += 60
    assert stop.code == OUT_OF_TIME
    assert stopping.words(stop.code, 2.0) == "stopped after --max_minutes 2"
    assert Stop(0, since=0).code == 0


def test_a_second_ctrl_c_ends_at_once_and_a_key_counts_once(clock, ended):
    with Stop().listening() as stop:
        stop.begin()
        send(signal.SIGINT)
        clock.seconds += 0.1  # from the terminal, and from a program in between
        send(signal.SIGINT)
        assert ended == []
        clock.seconds += 1
        send(signal.SIGTERM)
        assert ended == []
        send(signal.SIGINT)
    assert ended == [130]


def test_a_process_of_several_leaves_the_second_ctrl_c_to_its_launcher(clock, ended):
    with Stop(alone=False).listening() as stop:
        for _ in range(3):
            send(signal.SIGINT)
            clock.seconds += 1
    assert ended == [] and stop.code


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 3), (signal.SIGINT, 130), (signal.SIGUSR1, None)])
def test_before_the_training_there_is_nothing_to_wait_for(ended, number, code):
    with Stop().listening():
        send(number)
    assert ended == ([code] if code else [])


def test_what_nohup_has_ignored_stays_ignored(ended):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listening() as stop:
            send(signal.SIGHUP)
        assert (stop.code, ended, signal.getsignal(signal.SIGHUP)) == (0, [], signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_smaller_wish_is_part_of_the_larger():
    stop = Stop()
    orders = Orders(stop, Agreement(ALONE))
    stop.ask(signal.SIGUSR1)
    assert orders.after_step() and not orders.to_end and not orders.here
    assert not orders.after_step()
    stop.ask(signal.SIGUSR1)
    stop.ask(signal.SIGTERM)
    assert orders.here and orders.after_step() and orders.to_end


def wait_for_ever(ready) -> None:
    stay_out_of_it(0)
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who sends a signal")
def test_a_process_that_reads_data_ends_by_the_one_that_trains_alone():
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=wait_for_ever, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)
    for name in ("INT", "HUP", "USR1", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


# ---- a run of one process


def signalled(step_of_signal: int, number: int):
    """The `main` of the folder in small, which is sent a signal in one of its steps."""

    def main(args, run, data, model) -> dict:
        real = run.step

        def step(losses) -> None:
            real(losses)
            if run._step == step_of_signal:
                send(number)

        run.step = step
        return small_folder.main(args, run, data, model)

    return main


class Signalling(small_folder.Pictures):
    """Validation pictures; while one of them is read, the `at`-th from 0, a signal comes."""

    def __init__(self, length: int, at: int = 0):
        super().__init__(length)
        self.left = at

    def __getitem__(self, key):
        if self.left == 0:
            send(signal.SIGTERM)
        self.left -= 1
        return super().__getitem__(key)


def exit_code(main, output_dir: Path, *, build=build, **flags) -> int:
    try:
        launch(main, build, arguments(output_dir, **flags), small_folder)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("step", [0, 1, 2, 6])
def test_a_stop_loses_no_step_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path, capsys, step):
    assert exit_code(small_folder.main, tmp_path / "whole") == 0
    assert exit_code(signalled(step, signal.SIGTERM), tmp_path / "run") == 3
    line = f"stopped by SIGTERM after step {step + 1} of 8; continue with the same command and --resume auto\n"
    assert line in capsys.readouterr().out and line in (tmp_path / "run" / "train.log").read_text()
    assert last_checkpoint(tmp_path / "run")["steps_done"] == step + 1
    assert not (tmp_path / "run" / "result.json").exists()
    assert exit_code(small_folder.main, tmp_path / "run", resume="auto") == 0
    assert_same_state(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))


def test_after_the_last_step_a_stop_comes_too_late(tmp_path):
    assert exit_code(signalled(7, signal.SIGTERM), tmp_path / "run", validate=0) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8


def test_a_signal_to_save_saves_and_the_run_goes_on(tmp_path, capsys):
    assert exit_code(signalled(3, signal.SIGUSR1), tmp_path / "run", max_steps=5, validate=0) == 0
    assert "saved after step 4\n" in capsys.readouterr().out


def test_the_end_of_its_time_ends_a_run_in_order(tmp_path, capsys):
    assert exit_code(small_folder.main, tmp_path / "run", max_minutes="1e-9") == 3
    assert "stopped after --max_minutes 1e-09 after step 1 of 8; continue" in capsys.readouterr().out
    assert last_checkpoint(tmp_path / "run")["steps_done"] == 1


def test_the_duration_of_a_run_is_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr("common.start.started", lambda: time.time() - 1000)
    assert exit_code(small_folder.main, tmp_path / "run", max_steps=1) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["duration_seconds"] > 1000


@pytest.mark.parametrize("evaluation", [0, 2])
def test_an_evaluation_that_is_cut_off_is_done_before_the_run_goes_on(tmp_path, evaluation, capsys):
    """Evaluations come after steps 3, 6 and 8: the first, and the last, after which there is no step."""

    def build_with_signal(args, run):
        data, model = build(args, run)
        # each evaluation takes three pictures, and shows them once more
        return data._replace(val=Signalling(3, at=6 * evaluation)), model

    assert exit_code(small_folder.main, tmp_path / "whole") == 0
    assert exit_code(small_folder.main, tmp_path / "run", build=build_with_signal) == 3
    stopped = (3, 6, 8)[evaluation]
    assert f"stopped by SIGTERM after step {stopped} of 8" in capsys.readouterr().out
    state = last_checkpoint(tmp_path / "run")
    assert (state["steps_done"], state["unscored"]) == (stopped, True)
    assert [row["step"] for row in metric_rows(tmp_path / "run", "eval")] == [3, 6, 8][:evaluation]
    assert exit_code(small_folder.main, tmp_path / "run", resume="auto") == 0
    assert_same_state(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))
    scores = [
        [(row["step"], row["miou"], row["best"]) for row in metric_rows(tmp_path / name, "eval")]
        for name in ("run", "whole")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 3


def test_an_evaluation_alone_that_is_cut_off_has_no_result(tmp_path, capsys):
    exit_code(small_folder.main, tmp_path / "trained", max_steps=1)

    def main(args, run, data, model) -> dict:
        send(signal.SIGTERM)
        return small_folder.main(args, run, data, model)

    flags = {"evaluate": 1, "checkpoint": tmp_path / "trained" / "checkpoints" / "best.pt"}
    assert exit_code(main, tmp_path / "run", **flags) == 3
    assert "stopped by SIGTERM; give the same command again\n" in capsys.readouterr().out
    assert not (tmp_path / "run" / "result.json").exists()


# ---- several processes


def ask_in_one_process(folder: Path) -> None:
    """Five steps, in the second of which process 1 alone is asked to save, and in the third to end."""
    world = setup("cpu")
    stop, seen = Stop(alone=False), []
    orders = Orders(stop, Agreement(world))
    for step in range(5):
        if (world.rank, step) in {(1, 1), (1, 2)}:
            stop.ask(signal.SIGUSR1 if step == 1 else signal.SIGTERM)
        seen.append((orders.after_step(), orders.to_end))
    late, at_once = orders.here, Agreement(world).largest_now(7 * world.rank)
    (folder / f"seen_{world.rank}").write_text(json.dumps([seen, late, at_once]))
    torch.distributed.barrier()
    os._exit(0)


def test_what_one_process_is_asked_all_know_a_step_later(tmp_path):
    in_two_processes(tmp_path, ask_in_one_process, tmp_path)
    steps = [[False, False], [False, False], [True, False], [True, True], [True, True]]
    for rank in range(2):
        assert json.loads((tmp_path / f"seen_{rank}").read_text()) == [steps, rank == 1, 7]


def stop_one_process(output_dir: Path, in_evaluation: bool) -> None:
    """A run whose process 1 gets a signal in its first step, or while it evaluates after the third."""
    signals = os.environ["RANK"] == "1"
    with Stop(alone=False).listening() as stop:
        args = arguments(output_dir, validate=in_evaluation)
        run = Run(args, small_folder, 2, stop=stop)
        data, model = run.build(build)
        if signals and in_evaluation:
            data = data._replace(val=Signalling(3))
        run.join()
        main = signalled(0, signal.SIGTERM) if signals and not in_evaluation else small_folder.main
        with pytest.raises(Stopped):
            main(args, run, data, model)
    torch.distributed.barrier()
    os._exit(0)


@pytest.mark.parametrize("in_evaluation, step", [(False, 2), (True, 3)])
def test_a_signal_to_one_process_ends_all_after_the_same_step(tmp_path, in_evaluation, step):
    in_two_processes(tmp_path, stop_one_process, tmp_path / "run", in_evaluation)
    state = last_checkpoint(tmp_path / "run")
    assert (state["steps_done"], state["unscored"]) == (step, in_evaluation)
    assert f"stopped by SIGTERM after step {step} of 4" in (tmp_path / "run" / "train.log").read_text()


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from ci.tests import small_folder
from common.start import launch
folder, number = Path(sys.argv[1]), int(sys.argv[2])

def main(args, run, data, model):
    (folder / f"pid_{{run.world.rank}}").write_text(str(os.getpid()))
    real = run.step
    def step(losses):
        real(losses)
        if run._step == 1 and run.world.is_main:
            os.kill(os.getppid(), number)
    run.step = step
    return small_folder.main(args, run, data, model)

args = small_folder.arguments(folder / "run", devices=2, epochs=2000, validate=0)
launch(main, small_folder.build, args, small_folder)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_launcher_passes_signals_on_and_outlives_its_processes(tmp_path, number):
    """After a signal to save it goes on, until a second Ctrl-C ends all of them at once."""
    (tmp_path / "train.py").write_text(SCRIPT.format(root=str(ROOT)))
    log = tmp_path / "run" / "train.log"
    command = [sys.executable, "train.py", str(tmp_path), str(int(number))]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        if number == signal.SIGUSR1:
            wait_until(lambda: log.exists() and "saved after step" in log.read_text())
            processes = [int((tmp_path / f"pid_{rank}").read_text()) for rank in range(2)]
            for pid in processes:
                os.kill(pid, signal.SIGSTOP)  # hangs, and cannot end in order
            launcher.send_signal(signal.SIGINT)
            time.sleep(1)
            assert launcher.poll() is None
            launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=120)
    if number == signal.SIGTERM:
        assert launcher.returncode == 3, said
        assert "stopped by SIGTERM after step" in log.read_text().splitlines()[-1]
        assert last_checkpoint(tmp_path / "run")["steps_done"] < 20
    else:
        assert (launcher.returncode, said) == (130, "train.py: interrupted twice: what was not saved is lost\n")
        wait_until(lambda: not any(is_running(pid) for pid in processes))


def wait_until(condition, seconds=60):
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"still not so after {seconds} s")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_comes_later_is_told_what_has_been_asked(tmp_path, monkeypatch):
    relay = Relay(tmp_path)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        relay.take(number, None)
    monkeypatch.setenv(CHECKED, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    stop = Stop(alone=False)
    introduce(stop)
    assert stopping.words(stop.code, 0) == "stopped by SIGTERM"
    assert (tmp_path / "process-0").read_text() == str(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_machine_that_waits_for_others_can_be_ended(tmp_path, monkeypatch, number):
    ended = []
    monkeypatch.setattr("common.device.stopping.end_at_once", lambda text, code: ended.append((text, code)))
    (folder := tmp_path / "relay").mkdir()
    before = signal.signal(number, lambda *_: None)
    try:
        with Relay(folder).waiting():
            os.kill(os.getpid(), number)
            wait_until(lambda: ended)
    finally:
        signal.signal(number, before)
    reason, code = ("interrupted", 130) if number == signal.SIGINT else ("stopped by SIGTERM", 3)
    assert ended == [(f"{reason} before the training began: nothing was changed", code)]
    assert not folder.exists()


# ---- output that nobody reads


def test_a_closed_pipe_ends_no_run(tmp_path):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from common.device.exits import exit_codes\n"
        "from common.record.lines import Lines\n"
        "with exit_codes():\n"
        "    print('first')\n"
        "    print('a note', flush=True)\n"
        f"    lines = Lines(Path({str(tmp_path / 'train.log')!r}), 0, 2)\n"
        "    lines.say('one')\n"
        "    lines.say('two')\n"
        "    print('an error', file=sys.stderr, flush=True)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=write, env=environment)
    os.close(write)
    assert run.returncode == 0
    one, note, two = (tmp_path / "train.log").read_text().splitlines()
    assert (one, two) == ("one", "two") and note.startswith("nobody reads the output any more")


def test_output_that_is_read_has_no_such_note(tmp_path, capsys):
    Lines(tmp_path / "train.log", 0, 2).say("one")
    assert (tmp_path / "train.log").read_text() == capsys.readouterr().out == "one\n"
