"""The documents of the repository, and what a Markdown file consists of: headings, blocks of code, tables, commands."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ci.tests.folders import FOLDERS, ROOT

ENGLISH = sorted(
    path
    for place in (ROOT, ROOT / "docs", *(ROOT / folder for folder in FOLDERS))
    for path in place.glob("*.md")
    if not path.name.endswith(".zh.md")
)
SHELLS = {"bash", "sh", "shell"}

FENCE = re.compile(r" *(?P<ticks>`{3,}|~{3,})(?P<language>[^`]*)")
HEADING = re.compile(r"(#{1,6}) +(.+?)(?: +#+)? *")
CODE_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")


def in_chinese(path: Path) -> Path:
    return path.with_name(f"{path.stem}.zh.md")


class Fence(NamedTuple):
    language: str
    content: str


class Document:
    """What a Markdown file consists of.

    headings: [(level, text)]; fences: the blocks of code; tables: the rows of cells of each, the header first;
    sections: the text before the first heading and below each one, without fences and tables.
    """

    def __init__(self, path: Path):
        self.path = path
        self.headings: list[tuple[int, str]] = []
        self.fences: list[Fence] = []
        self.tables: list[list[list[str]]] = []
        self.sections = [""]
        lines = iter(path.read_text(encoding="utf-8").splitlines())
        in_table = False
        for line in lines:
            row = cells(line)
            if fence := FENCE.fullmatch(line):
                inside = "\n".join(iter(lambda ticks=fence["ticks"]: _next_inside(lines, ticks), None))
                self.fences.append(Fence(fence["language"].strip(), inside))
            elif heading := HEADING.fullmatch(line):
                self.headings.append((len(heading[1]), heading[2]))
                self.sections.append("")
            elif row and in_table:
                self.tables[-1].append(row)
            elif row:
                self.tables.append([row])
            else:
                self.sections[-1] += line + "\n"
            in_table = bool(row)

    def texts(self) -> list[str]:
        """All text that is not a block of code."""
        return [*self.sections, *(text for _, text in self.headings), *itertools.chain(*itertools.chain(*self.tables))]

    def code_spans(self) -> list[str]:
        return [" ".join(span.split()) for text in self.texts() for span in CODE_SPAN.findall(text)]

    def links(self) -> list[str]:
        return [a or b for text in self.texts() for a, b in LINK.findall(CODE_SPAN.sub("", text))]

    def anchors(self) -> list[str]:
        """What GitHub calls the headings, in their order."""
        slugs: list[str] = []
        anchors = []
        for _, text in self.headings:
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            anchors.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
            slugs.append(slug)
        return anchors

    def commands(self) -> Iterator[tuple[str, Path, list[str]]]:
        """(the line, the folder it runs in, its words) of each command in the shell blocks.

        A block that begins with `cd` is typed in the root of the repository, any other in the document's folder.
        """
        for fence in self.fences:
            if fence.language not in SHELLS:
                continue
            folder = ROOT if fence.content.startswith("cd ") else self.path.parent
            for line in fence.content.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                for is_operator, group in itertools.groupby(lexer, lambda word: set(word) <= set("();<>|&")):
                    words = list(group)
                    if is_operator:
                        assert words in (["&&"], [";"]), f"{line}: teach this test the operator {words[0]}"
                    elif words[0] == "cd":
                        folder = folder / words[1]
                        assert folder.is_dir(), f"{self.path}: {line}: there is no folder {folder}"
                    else:
                        yield line, folder, words


def _next_inside(lines: Iterator[str], ticks: str) -> str | None:
    """The next line of a block of code, None at its end."""
    line = next(lines, ticks)
    return None if line.strip() == ticks else line


def cells(line: str) -> list[str]:
    """The cells of a table's line, none for another line."""
    line = line.strip()
    if not (line.startswith("|") and line.endswith("|") and len(line) > 1):
        return []
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line[1:-1])]
