"""What is printed: colours and bars for a terminal, which a file or a pipe does not get, and readers that go away."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

RED, GREEN, YELLOW = 31, 32, 33
MARKED = {"error": RED, "stopped": RED, "NOT READY": RED, "warning": YELLOW, "note": YELLOW, "ready": GREEN}
BEST = "(best so far)"
MARKS = re.compile(rf"(?<![\w-])(?:{'|'.join(MARKED)})(?=:)|{re.escape(BEST)}")
DELAY_S = 2.0  # what is done sooner has no bar


def has_colours(stream: TextIO) -> bool:
    """Whether it is a terminal, whose user does not ask for plain text by NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: int, stream: TextIO) -> str:
    """The text in a colour, where the stream has some."""
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colours(stream) else text


def marked(line: str, stream: TextIO) -> str:
    """A line for people, with colour on the first word that says of what kind it is, where the stream has colours."""
    return MARKS.sub(lambda match: painted(match[0], MARKED.get(match[0], GREEN), stream), line, count=1)


def has_room(stream: TextIO) -> bool:
    """Whether a bar can be drawn: one that tells no width (some remote shells) has no room for it."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def progress(
    items: Iterable, what: str, total: int, unit: str, count: Callable[[object], int] = lambda item: 1
) -> Iterator:
    """The items, with a bar on the terminal while they take longer than a moment; it is gone afterwards.

    what: is done with them. total: of all. count: how many units an item is.
    """
    from tqdm import tqdm

    if not has_room(sys.stderr):
        yield from items
        return
    with tqdm(total=total, desc=what, unit=unit, leave=False, dynamic_ncols=True, delay=DELAY_S) as bar:
        for item in items:
            yield item
            bar.update(min(count(item), total - bar.n))


class Lasting:
    """A stream of text whose reader may go: `train.py | head` ends no run. What nobody reads is dropped."""

    def __init__(self, stream: TextIO):
        self._stream, self.is_read = stream, True

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._noticing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noticing():
            self._stream.flush()

    @contextlib.contextmanager
    def _noticing(self):
        try:
            yield
        except BrokenPipeError:
            self.is_read = False
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # for what is still in the buffers, here and in libraries
            os.close(nowhere)


@contextlib.contextmanager
def lasting_output():
    """Let what is printed last longer than its readers."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    with contextlib.redirect_stdout(Lasting(sys.stdout)), contextlib.redirect_stderr(Lasting(sys.stderr)):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # else Python flushes at its end, and has an exit code of its own for it
                sys.stdout.flush()
