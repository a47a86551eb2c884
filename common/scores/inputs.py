"""Pictures that a pattern or a list names, each with the folder that its results' names begin in."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from common.data.decode import IMAGE_SUFFIXES
from common.errors import InputError

LIST_SUFFIX = ".txt"


def matching(pattern: str) -> list[tuple[Path, Path]]:
    """The pictures that a pattern matches, sorted: 'shots/*.jpg', or 'shots/**/*.jpg' with all folders below.

    A shell expands patterns itself, up to so many files; in quotes it leaves them to this. Nothing for text that is no
    pattern. Raises InputError for one that matches no picture.
    """
    if not glob.has_magic(pattern):
        return []
    found = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
    pictures = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not pictures:
        raise InputError(f"--input {pattern} matches {len(found)} files, none of them a picture; give another pattern")
    return _with_root(pictures)


def listed(path: Path) -> list[tuple[Path, Path]]:
    """The pictures that a list names, a path a line, in its order, each once; relative paths start at the list.

    Raises InputError, with the line, for a file that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --input {path} ({error}); it should name a picture in each line") from error
    pictures: dict[Path, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        picture = Path(os.path.abspath(path.parent / os.path.expanduser(line.strip())))
        if not picture.is_file():
            raise InputError(f"--input {path}, line {number}: there is no file {picture}; fix the list")
        pictures[picture] = None
    if not pictures:
        raise InputError(f"--input {path} is empty; it should name a picture in each line")
    return _with_root(list(pictures))


def _with_root(pictures: Sequence[Path]) -> list[tuple[Path, Path]]:
    root = Path(os.path.commonpath([picture.parent for picture in pictures]))
    return [(picture, root) for picture in pictures]
