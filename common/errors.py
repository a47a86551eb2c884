"""How a run ends before its time, and the exit codes of all commands."""

import struct
import zlib
from enum import IntEnum

from PIL import Image

# what Pillow raises for a damaged or foreign file, by kind and by what is wrong with it
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


class ExitCode(IntEnum):
    """The exit codes of training, evaluation, prediction and tools; the table in README.md says the same."""

    DONE = 0
    FAILED = 1
    INPUT = 2  # input that cannot work: nothing was started or changed
    STOPPED = 3  # in order, by a signal, --max_minutes or lost data: the same command goes on with --resume auto
    OMISSIONS = 4  # done, but for what was listed
    INTERRUPTED = 130  # at once, by a second Ctrl-C, or by the first one before anything had begun


class InputError(ValueError):
    """Something the user gave cannot work. The message says what was given, what is needed and what to do, in one line.

    `common.device.exits.exit_codes` prints it without a traceback and exits with ExitCode.INPUT.
    """


class Unreachable(InputError):
    """A disk or file server has not given a file, although it was asked for some seconds: a later try may succeed."""


class Diverged(ArithmeticError):
    """Training produced a value that is not finite. The message names the step; the exit code is ExitCode.FAILED.

    step: counted from 1. not_finite: names of the terms of the loss, of weights, or 'gradients'.
    """

    def __init__(self, message: str, step: int, not_finite: list[str]):
        super().__init__(message)
        self.step, self.not_finite = step, not_finite


class NotSaved(RuntimeError):
    """A run came to its end, and its last checkpoint could not be written; the exit code is ExitCode.FAILED."""


class Failed(RuntimeError):
    """What was asked for could not be made, and nothing of it is left; the exit code is ExitCode.FAILED."""


class Stopped(Exception):
    """All processes of a run were asked to end, and what they had done is kept; the exit code is ExitCode.STOPPED."""
