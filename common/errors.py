"""The ways a run ends because of something its user can mend."""

import struct
import zlib

from PIL import Image

# what Pillow raises for a damaged or foreign file, by kind and by what is wrong with it
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


class InputError(ValueError):
    """Something the user gave cannot work. The message says what was given, what is needed and what to do, in one line.

    `common.device.exits.exit_codes` prints it without a traceback and exits with 2.
    """


class Diverged(ArithmeticError):
    """Training produced a value that is not finite. The message names the step; `launch` exits with 1."""


class NotSaved(RuntimeError):
    """The training came to its end, and its last checkpoint could not be written; `launch` exits with 1."""
