"""Being told to stop, by a signal or by the clock.

A handler of signals sets a flag and does nothing else: it may interrupt a fork, a write or an import, and an exception
raised there can be swallowed or leave half of something. The loop reads the flag after each step, all processes at the
same one (`common.device.agreement`), saves, and ends in order or goes on.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from common.device.agreement import Agreement
from common.errors import ExitCode, InputError, Stopped, Unreachable

# SIGHUP is the end of a terminal or of a connection, SIGUSR1 is what a queue can send some time before it ends a job.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVES = signal.SIGUSR1
SAVE, OUT_OF_TIME, UNREADABLE = 1, 2, 3  # what processes agree on; a signal is its number and as much as this
OF_SIGNALS = 100
ONE_KEY_S = 0.3  # a key that is pressed once may arrive twice: from the terminal, and from a program in between


class Stop:
    """What this process has been asked to do: nothing, to save, or to save and end.

    max_minutes: after which the run ends by itself; 0: never. since: when it began, in seconds of the clock; None: now.
    alone: nobody else ends this process when Ctrl-C is pressed for a second time.
    """

    def __init__(self, max_minutes: float = 0, since: float | None = None, alone: bool = True):
        self.max_minutes, self.alone = max_minutes, alone
        self.since = time.time() if since is None else since
        self._end = self.since + 60 * max_minutes if max_minutes else float("inf")
        self._signal, self._signal_came = 0, 0.0
        self._save = False
        self._unreadable: InputError | None = None
        self._begun = not alone  # others of the run may have begun, and would wait for this one

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Take the signals of the process, in its main thread; those that it was told to ignore (nohup) it ignores."""
        numbers = [number for number in (*STOPS, SAVES) if signal.getsignal(number) != signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        before = {number: signal.signal(number, self._take) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin(self) -> None:
        """From here on a stop waits for the end of a step; before, there is nothing to keep, and it ends at once."""
        self._begun = True

    def ask(self, number: int) -> None:
        """What a signal asks for."""
        if number == SAVES:
            self._save = True
        elif not self._signal:
            self._signal, self._signal_came = number, time.monotonic()

    def unreadable(self, error: InputError) -> None:
        """A sample cannot be read: end the run, when what it has done is kept."""
        self._unreadable = error

    def leave(self) -> NoReturn:
        """End this process, in which all is kept: raises Stopped or, for a file that has to be mended, what it is told.

        A disk or file server may give the next time what it has not given now: that is said, and is an end in order.
        """
        if self._unreadable and not isinstance(self._unreadable, Unreachable):
            raise self._unreadable
        if self._unreadable:
            print(f"{os.path.basename(sys.argv[0])}: {self._unreadable}", file=sys.stderr, flush=True)
        raise Stopped

    @property
    def code(self) -> int:
        """What is asked for as a number, the largest of which holds when processes differ; 0: nothing."""
        if self._signal:
            return OF_SIGNALS + self._signal
        if self._unreadable:
            return UNREADABLE
        if time.time() >= self._end:
            return OUT_OF_TIME
        return SAVE if self._save else 0

    def take(self) -> int:
        """`code`, and a wish to save is fulfilled with it."""
        code, self._save = self.code, False
        return code

    def _take(self, number: int, _frame) -> None:
        again = number == signal.SIGINT and self._signal and time.monotonic() - self._signal_came > ONE_KEY_S
        if self.alone and again:
            end_at_once("interrupted twice: what was not saved is lost", ExitCode.INTERRUPTED)
        self.ask(number)
        if not self._begun and number != SAVES:
            end_before_training(number)


def end_at_once(text: str, code: int) -> None:
    """End this process with a line, from whatever it is in."""
    with contextlib.suppress(OSError):  # nobody may read it
        os.write(2, f"{os.path.basename(sys.argv[0])}: {text}\n".encode())
    os._exit(code)


def end_before_training(number: int) -> None:
    """End this process, which has nothing to keep, because of a signal."""
    code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
    end_at_once(f"{words(OF_SIGNALS + number, 0)} before the training began: nothing was changed", code)


def words(code: int, max_minutes: float) -> str:
    """Why a run stops, from what its processes agreed on."""
    if code == OUT_OF_TIME:
        return f"stopped after --max_minutes {max_minutes:g}"
    if code == UNREADABLE:
        return "stopped by data that cannot be read"
    number = code - OF_SIGNALS
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


class Orders:
    """What the processes of a run have been asked for, known to all of them alike."""

    def __init__(self, stop: Stop, agreement: Agreement):
        self.stop, self._agreement, self._code = stop, agreement, 0

    def after_step(self, save: bool = False) -> bool:
        """Whether to save now. Call it in all processes after each step but the last; see `to_end`.

        save: whether this process wants it, besides what it was asked for from outside.
        """
        self._code = max(self._code, self._agreement.largest(max(self.stop.take(), SAVE * save)))
        save, self._code = self._code > 0, 0 if self._code == SAVE else self._code
        return save

    @property
    def to_end(self) -> bool:
        """Whether the processes have agreed to end."""
        return self._code > SAVE

    @property
    def here(self) -> bool:
        """Whether this process has been asked to end, of which the others may not know."""
        return self.stop.code > SAVE

    def after_evaluation(self) -> bool:
        """Whether any process has been asked to end, for which all of them wait here."""
        code = self._agreement.largest_now(self.stop.code)
        self._code = code if code > SAVE else 0
        return self.to_end

    def any_now(self, flag: bool) -> bool:
        """Whether any process says so in this call, for which all of them wait."""
        return self._agreement.largest_now(int(flag)) > 0

    def wait_for_all(self) -> None:
        """Until all processes have come here: none leaves while another one is writing."""
        self._agreement.largest_now(0)

    @property
    def reason(self) -> str:
        """Why the run ends, for people."""
        return words(self._code, self.stop.max_minutes)


def stay_out_of_it(_worker: int) -> None:
    """For processes that read data: what ends a run is the business of the process that trains, which ends them.

    A terminal, `timeout` and some queues send signals to all processes of a group, and a worker that dies of one would
    end the run before it has saved. SIGTERM counts when it comes from the process that started this one.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not say who has sent a signal
        return
    trainer = multiprocessing.parent_process().pid
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
