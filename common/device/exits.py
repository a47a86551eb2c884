"""How a program ends: what a user can mend in one line, and an exit code."""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import traceback

import torch.distributed as dist

from common.errors import Diverged, InputError, NotSaved

OUT_OF_MEMORY_WORDS = 160  # letters of such an error that say how much was asked for; the rest is for programmers


@contextlib.contextmanager
def exit_codes():
    """Turn what a user can mend into one line and an exit code; anything else keeps its traceback."""
    name = os.path.basename(sys.argv[0])
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # takes over from common.args
    try:
        yield
    except KeyboardInterrupt:
        if "LOCAL_RANK" not in os.environ:  # the processes of a run leave the word to the one that started them
            print(f"{name}: interrupted; continue with the same command and --resume auto", file=sys.stderr)
        leave(130)
    except Exception as error:
        text, code = _in_words(error)
        if text:
            print(f"{name}: {text}", file=sys.stderr)
        else:
            traceback.print_exc()
        leave(code)


def _in_words(error: Exception) -> tuple[str, int]:
    """(What a user is told of an error, or '' for one of the program itself; exit code)."""
    said = " ".join(str(error).split())
    if isinstance(error, InputError):
        return f"error: {error}", 2
    if isinstance(error, Diverged | NotSaved):
        return f"stopped: {error}", 1
    if isinstance(error, PermissionError) and error.filename:
        return f"error: no permission for {error.filename}; have its owner give it, or name another path", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"stopped: no space is left for {error.filename or 'a file'}; what was complete before is still there: "
            "free some space, and continue with --resume auto"
        ), 1
    if is_out_of_memory(error):
        return (
            f"stopped: out of memory ({said.partition('. GPU ')[0][:OUT_OF_MEMORY_WORDS]}); lower "
            "--device_batch_size, and --lr in proportion; in an evaluation lower --eval_batch_size"
        ), 1
    if dist.is_initialized() and re.search("Connection (closed|reset)|Broken pipe", said):
        return f"process {dist.get_rank()} has lost another process of the run", 1
    return "", 1


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that the device or the machine is out of memory."""
    words = "out of memory|can't allocate memory|STATUS_ALLOC_FAILED"  # of CUDA, NPU and CPU; of cuDNN and cuBLAS
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


def leave(code: int) -> None:
    """Leave at once where other processes of the run may be waiting for this one in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized():
        os._exit(code)
    sys.exit(code)
