"""What people read of a run while it works: lines on the terminal and in a file, and a progress bar."""

import sys
from pathlib import Path

from tqdm import tqdm

from common.record.files import Appended
from common.terminal import has_room, marked


class Lines:
    """Lines for people, in train.log and on the terminal; there beside a progress bar where it has room for one."""

    def __init__(self, path: Path, first_step: int, total_steps: int):
        self._file, self._is_full = Appended(path), False
        self._bar, self._is_read = None, True
        if has_room(sys.stderr) and total_steps > first_step:  # else it gets the lines
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, smoothing=0.1)

    def say(self, line: str) -> None:
        """A line in the file and on the terminal."""
        self.keep(line)
        if self._bar is None:
            self._print(line)
        else:
            tqdm.write(marked(line, sys.stdout), file=sys.stdout)
            sys.stdout.flush()

    def report(self, line: str, short: str) -> None:
        """A line about the progress: where there is a bar, the terminal gets the `short` one behind it."""
        self.keep(line)
        if self._bar is None:
            self._print(line)
        else:
            self._bar.set_postfix_str(short)

    def advance(self) -> None:
        """One step more on the bar."""
        if self._bar is not None:
            self._bar.update(1)

    def end_bar(self) -> None:
        """Leave the bar as it is: what follows are lines."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, line: str) -> None:
        print(marked(line, sys.stdout), flush=True)
        if self._is_read and not getattr(sys.stdout, "is_read", True):  # see `common.terminal.Lasting`
            self._is_read = False
            self.keep("nobody reads the output any more (a closed pipe): from here on lines are in this file alone")

    def keep(self, line: str) -> None:
        """A line in the file alone."""
        try:
            self._file.append(line + "\n")
            self._is_full = False
        except OSError as error:
            if not self._is_full:
                self._is_full = True
                reason = error.strerror or error
                self._print(f"warning: {self._file.path} takes no line ({reason}); it gets them when it does again")
