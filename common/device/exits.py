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

from common.device.relay import exit_code_of_stop
from common.device.watching import lost_process
from common.errors import Diverged, ExitCode, Failed, InputError, NotSaved, Stopped
from common.terminal import lasting_output, marked

TRAINING = "train.py"  # the script that has --resume
LESS_MEMORY = {  # by script
    TRAINING: "lower --device_batch_size, and --lr in proportion; in an evaluation lower --eval_batch_size",
    "predict.py": "lower --batch_size, or --window for large pictures",
    "export.py": "lower --batch or --size",
}
# of a path that was given: where nothing can be written, whoever asks
NO_PLACE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
ERROR_LETTERS = 160  # of the text of an error that a user is told; the rest is for programmers


@contextlib.contextmanager
def exit_codes():
    """Turn what a user can mend into one line and an exit code; anything else keeps its traceback.

    What is printed lasts longer than its readers (`lasting_output`).
    """
    with lasting_output(), _exit_codes():
        yield


@contextlib.contextmanager
def _exit_codes():
    name = os.path.basename(sys.argv[0])
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # takes over from common.args
    try:
        yield
        sys.stdout.flush()  # a disk that is full says so here, and not after the end
    except KeyboardInterrupt:
        if "LOCAL_RANK" not in os.environ:  # the processes of a run leave the word to the one that started them
            goes_on = "; continue with the same command and --resume auto" if name == TRAINING else ""
            print(f"{name}: interrupted{goes_on}", file=sys.stderr)
        leave(ExitCode.INTERRUPTED)
    except Stopped:  # the run has said so
        leave(exit_code_of_stop())
    except Exception as error:
        with _not_ended():
            text, code = _in_words(error)
            if text:
                print(marked(f"{name}: {text}", sys.stderr), file=sys.stderr)
            else:
                traceback.print_exc()
        leave(code)


@contextlib.contextmanager
def _not_ended():
    """While a process of a run says why it fails: torchrun ends all when one of the others has failed before."""
    if "LOCAL_RANK" not in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _in_words(error: Exception) -> tuple[str, int]:
    """(What a user is told of an error, or '' for one of the program itself; exit code)."""
    said, script = " ".join(str(error).split()), os.path.basename(sys.argv[0])
    if isinstance(error, InputError):
        return f"error: {error}", ExitCode.INPUT
    if isinstance(error, Diverged | NotSaved | Failed):
        return f"stopped: {error}", ExitCode.FAILED
    if isinstance(error, PermissionError) and error.filename:
        said = f"error: no permission for {error.filename}; have its owner give it, or name another path"
        return said, ExitCode.INPUT
    if isinstance(error, OSError) and error.errno in NO_PLACE and error.filename:
        return f"error: {error.filename}: {error.strerror}; give another path", ExitCode.INPUT
    if loop := re.fullmatch(r"Symlink loop from '(.*)'", said):  # of Path.resolve
        return f"error: {loop[1]} is a link that leads to itself; give another path", ExitCode.INPUT
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        again = "continue with --resume auto" if script == TRAINING else "give the same command again"
        return (
            f"stopped: no space is left for {error.filename or 'a file'}; what was complete before is still there: "
            f"free some space, and {again}"
        ), ExitCode.FAILED
    if is_out_of_memory(error):
        remedy = LESS_MEMORY.get(script, "give it less to do, or a machine with more")
        return f"stopped: out of memory ({said.partition('. GPU ')[0][:ERROR_LETTERS]}); {remedy}", ExitCode.FAILED
    if dist.is_initialized() and (end := _end_of_communication(error, said)):
        return f"process {dist.get_rank()} {end}", ExitCode.FAILED
    return "", ExitCode.FAILED


def reason(error: Exception) -> str:
    """Why an error ends a program, in a line: what a user is told of it, or the beginning of what Python says."""
    text, _ = _in_words(error)
    said = " ".join(str(error).split())[:ERROR_LETTERS]
    return text.removeprefix("error: ").removeprefix("stopped: ") or f"{type(error).__name__}: {said}"


def _end_of_communication(error: Exception, said: str) -> str:
    """What happened between the processes, where that is what an error tells; '' otherwise."""
    if re.search("Connection (closed|reset|refused)|Broken pipe|remote process exited", said):
        return f"has lost {lost_process() or 'another process of the run'}"
    if re.search(r"[Tt]imed out (waiting|after)|[Tt]imeout (after|waiting)", said):
        return "has waited in vain for another process of the run, which may hang: look for the one without an error"
    return f"cannot reach the others: {said[:ERROR_LETTERS]}" if isinstance(error, dist.DistError) else ""


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that the device or the machine is out of memory."""
    words = "out of memory|can't allocate memory|STATUS_ALLOC_FAILED"  # of CUDA, NPU and CPU; of cuDNN and cuBLAS
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


def leave(code: int) -> None:
    """Leave at once where other processes of the run may be waiting for this one in a collective."""
    if dist.is_initialized():
        leave_at_once(code)
    sys.exit(code)


def leave_at_once(code: int) -> None:
    """Leave without what Python does at its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
