"""python -m ci.torch_npu_names: the table of names; exit code 1 when one is missing, 2 when that cannot be known."""

import os
import sys
from itertools import groupby
from pathlib import Path

from ci.torch_npu_names import importing
from ci.torch_npu_names.answers import Answer
from ci.torch_npu_names.reading import Sources
from ci.torch_npu_names.uses import Use, collect
from ci.torch_npu_names.wheels import ROOT, Unavailable, given, python_with_torch, unpacked

IMPORTED = "2.13.0"  # the newest that this check has imported; TORCH_NPU_WHEEL names the file of another
READ = ("2.6.0", "2.14.0")  # that of the oldest torch in common/requirements.txt, and the newest there is


def main() -> int:
    uses = by_name(collect(ROOT, product_files(ROOT)))
    try:
        columns = {**imported(uses, download=True), **read(uses, READ, download=True)}
    except Unavailable as error:
        print(f"the names of torch_npu cannot be checked: {error}", file=sys.stderr)
        return 2
    print(table(uses, columns))
    wrong = missing(columns)
    print(f"{len(uses)} names, {len(wrong)} not as they are used{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


def product_files(root: Path) -> list[Path]:
    """The Python files of common/ and of the model folders, without what runs write."""
    folders = [root / "common", *(path.parent for path in root.glob("*/train.py"))]
    files = (path for folder in folders for path in folder.rglob("*.py"))
    return [path for path in files if "output" not in path.relative_to(root).parts]


def by_name(uses: list[Use]) -> dict[str, list[Use]]:
    """Name -> its uses, which come sorted by name."""
    return {name: list(those) for name, those in groupby(uses, key=lambda use: use.name)}


def imported(uses: dict[str, list[Use]], download: bool) -> dict[str, dict[str, Answer]]:
    """Heading of a column -> name -> answer, of the release that is imported. Raises Unavailable."""
    version, wheel = IMPORTED, os.environ.get("TORCH_NPU_WHEEL")
    if wheel:
        version, folder = given(Path(wheel))
    else:
        folder = unpacked(version, download, to_import=True)
    torch_version = ".".join(version.split(".")[:3])  # 2.12.0.post3 is for torch 2.12.0
    python = python_with_torch(torch_version, download)
    return {f"{version}, imported": importing.ask(python, folder, uses)}


def read(uses: dict[str, list[Use]], versions: tuple[str, ...], download: bool) -> dict[str, dict[str, Answer]]:
    """As `imported`, of releases whose files are read."""
    columns = {}
    for version in versions:
        sources = Sources(unpacked(version, download))
        columns[f"{version}, read"] = {name: sources.answer(name, those) for name, those in uses.items()}
    return columns


def missing(columns: dict[str, dict[str, Answer]]) -> list[str]:
    """The names that a release has not, or that it has and not for these arguments."""
    return sorted({name for answers in columns.values() for name, answer in answers.items() if not answer.good})


def table(uses: dict[str, list[Use]], columns: dict[str, dict[str, Answer]]) -> str:
    """One line per name: where it is used, and the answer of each release."""
    rows = [["name", "used in", *columns]]
    rows += [[name, _places(those), *(told[name].text for told in columns.values())] for name, those in uses.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _places(uses: list[Use]) -> str:
    """common/data/loading.py:95,102 common/device/world.py:83"""
    files = groupby(uses, key=lambda use: use.file)
    return " ".join(
        f"{file}:{','.join(str(line) for line in sorted({use.line for use in those}))}" for file, those in files
    )


if __name__ == "__main__":
    sys.exit(main())
