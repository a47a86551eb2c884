"""How the process that started a run and the processes of the run tell each other of a stop.

They share a folder. Each process of the run leaves its number there as soon as it can be told of a signal, and the one
that started them writes each signal down before it passes it on: one that came earlier is found there. Processes that
end in order say so there and end with exit code 0: torchrun takes any other one for a failure, ends the others, and
would start all of them anew.
"""

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import common
from common.device.stopping import ONE_KEY_S, SAVES, STOPS, Stop, end_at_once, end_before_training
from common.errors import ExitCode

# Set for the processes that `run_torchrun` starts, whose arguments have been checked already: the folder of this file.
CHECKED = "SEGMENTATION_ZOO_CHECKED"
STARTED = "SEGMENTATION_ZOO_STARTED"  # when what has started them began
SIGNALS, STOPPED, OMITTED = "signals", "stopped", "omitted"


def started() -> float:
    """When the run began, in seconds of the clock: this process, or the one that has started it."""
    return float(os.environ.get(STARTED, common.STARTED)) if os.environ.get(CHECKED) else common.STARTED


class Relay:
    """The side of the process that has started the others: it passes signals on, and outlives them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._ignored = {number for number in STOPS if signal.getsignal(number) == signal.SIG_IGN}  # as nohup has it
        self._stop_came: float | None = None

    def take(self, number: int, _frame) -> None:
        """A handler of signals. A second Ctrl-C ends all processes at once."""
        if number in self._ignored:
            return
        now = time.monotonic()
        if number == signal.SIGINT and self._stop_came is not None and now - self._stop_came > ONE_KEY_S:
            self._send(signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)
            end_at_once("interrupted twice: what was not saved is lost", ExitCode.INTERRUPTED)
        if number != SAVES and self._stop_came is None:
            self._stop_came = now
        with contextlib.suppress(FileNotFoundError), open(self.folder / SIGNALS, "a", encoding="ascii") as file:
            file.write(f"{int(number)}\n")  # the folder is gone when the processes are
        self._send(number)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, a signal ends this process at once, as long as it has no others: it waits for other machines.

        torchrun waits in C++, for a quarter of an hour, where no handler of Python's is called; but Python writes the
        number of the signal into a file at once, and a thread reads it there.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)

        def read() -> None:
            for number in iter(lambda: reader.recv(1), b""):
                if ord(number) in STOPS:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    end_before_training(ord(number))

        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()
            thread.join()
            reader.close()

    @property
    def has_stopped(self) -> bool:
        """Whether the processes have ended in order."""
        return (self.folder / STOPPED).exists()

    @property
    def has_omitted(self) -> bool:
        """Whether the processes have done their work but for what they have listed."""
        return (self.folder / OMITTED).exists()

    def _send(self, number: int) -> None:
        for file in self.folder.glob("process-*"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text(encoding="ascii")), number)


def introduce(stop: Stop) -> None:
    """The side of a process of the run, as soon as it takes signals: from here on it is told of them."""
    if not os.environ.get(CHECKED):
        return
    folder = Path(os.environ[CHECKED])
    if not folder.is_dir():  # what has started this process is gone
        return
    (folder / f"process-{os.environ['LOCAL_RANK']}").write_text(str(os.getpid()), encoding="ascii")
    with contextlib.suppress(FileNotFoundError):
        for number in (folder / SIGNALS).read_text(encoding="ascii").split():
            if int(number) != SAVES:
                stop.ask(int(number))


def exit_code_of_stop() -> int:
    """What a process of a run that has stopped in order ends with, having said so."""
    if not os.environ.get(CHECKED):
        return ExitCode.STOPPED
    Path(os.environ[CHECKED], STOPPED).touch()
    return ExitCode.DONE


def exit_code_of_omissions() -> int:
    """What a process ends with whose run is done but for what it has listed.

    To a torchrun of the user's own it is a success: another code would have it end the processes that still write.
    """
    if not os.environ.get(CHECKED):
        return ExitCode.DONE if "LOCAL_RANK" in os.environ else ExitCode.OMISSIONS
    Path(os.environ[CHECKED], OMITTED).touch()
    return ExitCode.DONE
