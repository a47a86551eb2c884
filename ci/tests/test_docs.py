"""README.md and README.zh.md of the root and of each model: prose twice, facts once, and the facts are the code's."""

import contextlib
import io
import itertools
import re
import runpy
import sys
import unicodedata
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest.mock import patch

import pytest

import common.scores.export
import common.scores.predict
from ci.documents import CODE_SPAN, ENGLISH, LINK, SHELLS, Document, in_chinese
from ci.flag_tables import preset_table
from ci.tests.folders import FOLDERS, ROOT, module
from common.args import format_setting, parse_args
from common.flags import FLAGS
from common.tools import benchmark, cache, check
from common.tools.complexity import complexity_of

LANGUAGES = ("README.md", "README.zh.md")
DOCUMENTS = [path for english in ENGLISH for path in (english, in_chinese(english))]
NOT_OURS = {"output", "data", "pretrained"}  # folders that git ignores; so it does those that begin with a dot
HTML = {"a", "br", "details", "em", "img", "p", "picture", "source", "sub", "summary", "sup"}  # what a README may use
SYSTEM_FOLDERS = {"path", "usr", "etc", "dev"}  # /path/to/... stands for a place of the reader's own

FLAG = re.compile(r"--([a-z](?:[\w-]*[a-z0-9])?)(?![\w-])", re.ASCII)
NUMBER = re.compile(r"-?[A-Za-z_]*\d+(?:[.,]\d+)*", re.ASCII)  # 26,249,376, 68.9, -1; also fp16, O1, resnet50
# anywhere with two slashes, and with one where a word begins
ABSOLUTE_PATH = re.compile(r"(?<![\w.~/<>*{}\])-])/([a-z]\w*)(?=/)|(?<![^\s`\"'=(])/([a-z]\w*)", re.ASCII)

each_english = pytest.mark.parametrize("path", ENGLISH, ids=lambda path: str(path.relative_to(ROOT)))
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


# ---- the two languages of a document


def both(path: Path) -> list[Document]:
    return [Document(path), Document(in_chinese(path))]


def code_in(text: str) -> set[str]:
    return set(CODE_SPAN.findall(text))


# ---- the table of models


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_table_of_models_lists_each_with_its_numbers(name):
    rows = next(table for table in Document(ROOT / name).tables if "GFLOPs" in table[0])[2:]
    listed = {LINK.search(row[0])[1].partition("/")[0]: row for row in rows}
    assert sorted(listed) == FOLDERS
    for folder, row in listed.items():
        size, parameters, operations = complexity_of(folder)
        assert row[2] == f"{parameters:,}", folder
        assert [number.replace(",", "") for number in NUMBER.findall(row[3])] == [
            f"{operations / 1e9:.1f}",
            *map(str, size),
        ], folder


# ---- one text in two languages


@each_english
def test_blocks_of_code_are_the_same(path):
    english, chinese = both(path)
    assert english.fences
    assert chinese.fences == english.fences


@each_english
def test_headings_are_of_the_same_levels(path):
    english, chinese = ([level for level, _ in document.headings] for document in both(path))
    assert english == chinese
    assert english[0] == 1 and len(english) > 4


@each_english
def test_tables_have_the_same_numbers_and_names(path):
    english, chinese = both(path)
    assert len(english.tables) == len(chinese.tables) > 0
    for table, table_zh in zip(english.tables, chinese.tables, strict=True):
        assert len(table) == len(table_zh), f"{table[0]} and {table_zh[0]}"
        for row, row_zh in zip(table, table_zh, strict=True):
            assert len(row) == len(row_zh) == len(table[0]), f"{row} and {row_zh}"
            assert list(map(NUMBER.findall, row)) == list(map(NUMBER.findall, row_zh))
            assert code_in(" ".join(row)) <= code_in(" ".join(row_zh)), f"{row} and {row_zh}"


@each_english
def test_sections_have_the_same_numbers_and_names(path):
    """Of numbers those that nobody writes in words: with two digits or more."""
    english, chinese = both(path)
    for text, text_zh in zip(english.sections, chinese.sections, strict=True):
        assert long_numbers(text) == long_numbers(text_zh), f"{text}\n{text_zh}"
        assert code_in(text) == code_in(text_zh), f"{text}\n{text_zh}"


def long_numbers(text: str) -> list[str]:
    """Those with two digits or more, sorted, without the ones in code and in addresses of links."""
    text = re.sub(r"\]\([^)]*\)", "]", CODE_SPAN.sub("", text))
    return sorted(number for number in NUMBER.findall(text) if sum(map(str.isdigit, number)) > 1)


@each_english
def test_links_lead_to_the_same_places(path):
    """To the other language at the top, and from then on to documents of the same language."""
    english, chinese = both(path)
    assert english.links()[0] == in_chinese(path).name and chinese.links()[0] == path.name
    assert sorted(map(heading_number, english.links(), itertools.repeat(english))) == sorted(
        map(heading_number, chinese.links(), itertools.repeat(chinese))
    )
    names = [[Path(link.partition("#")[0]).name for link in document.links()[1:]] for document in (english, chinese)]
    assert not [name for name in names[0] if name.endswith(".zh.md")]
    assert not [name for name in names[1] if name.endswith(".md") and not name.endswith(".zh.md")]


def heading_number(link: str, document: Document) -> str:
    """A link with the language of its document left out, and with the number of a heading for its name."""
    file, _, anchor = link.partition("#")
    target = Document(document.path.parent / file) if file.endswith(".md") else document
    number = target.anchors().index(anchor) if anchor in target.anchors() else anchor
    return f"{file.replace('.zh.md', '.md')}#{number}"


@each_english
def test_each_text_is_in_its_language(path):
    english, chinese = ("".join(document.sections) for document in both(path))
    assert sum(map(is_chinese, chinese)) > 100
    assert sum(map(is_chinese, english)) <= len("中文")


def is_chinese(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("CJK UNIFIED")


# ---- links and files


@each_document
def test_links_lead_somewhere(path):
    for link in Document(path).links():
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path}: the link {link} leads to no file"
        assert target.resolve().is_relative_to(ROOT), f"{path}: the link {link} leads out of the repository"
        assert not anchor or anchor in Document(target).anchors(), f"{path}: the link {link} leads to no heading"


@each_document
def test_files_that_the_text_names_exist(path):
    """Names of scripts and documents, and whatever begins with a folder of the repository."""
    tops = {"common", "ci", "test", *FOLDERS}
    for span in Document(path).code_spans():
        name = Path(span)
        is_ours = name.suffix in (".py", ".sh", ".md", ".toml") or ("/" in span and name.parts[0] in tops)
        if is_ours and re.fullmatch(r"[\w./*-]+", span) and not NOT_OURS & set(name.parts):
            folders = [path.parent, ROOT, ROOT / "common", *(ROOT / folder for folder in FOLDERS)]
            assert any(list(folder.glob(span.rstrip("/"))) for folder in folders), f"{path}: there is no {span}"


def markdown_files() -> list[Path]:
    ignored = {path for path in ROOT.iterdir() if path.name in NOT_OURS or path.name.startswith(".")}
    ignored |= {ROOT / folder / name for folder in FOLDERS for name in NOT_OURS}
    return sorted(path for path in ROOT.rglob("*.md") if not ignored & set(path.parents))


each_markdown_file = pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))


@each_markdown_file
def test_no_path_of_one_machine(path):
    found = {a or b for a, b in ABSOLUTE_PATH.findall(path.read_text(encoding="utf-8"))} - SYSTEM_FOLDERS
    assert not found, f"{path} names {', '.join(f'/{name}' for name in sorted(found))}; write /path/to/..."


@each_markdown_file
def test_angle_brackets_are_in_code(path):
    """Elsewhere GitHub takes <preset> for a tag that it does not know, and leaves it out."""
    for text in Document(path).texts():
        tags = set(re.findall(r"</?(?!https://)([A-Za-z][\w-]*)", CODE_SPAN.sub("", text)))
        assert tags <= HTML, f"{path}: <{(tags - HTML).pop()}> is not in backticks: {text}"


# ---- flags

MEANINGS = {name: text for flags in FLAGS.values() for name, (_, text) in flags.items()}


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_table_of_flags_is_that_of_the_presets(folder, name):
    presets = module(folder, "presets")
    default = next(iter(presets.PRESETS.values()))
    (table,) = (table for table in Document(ROOT / folder / name).tables if table[-1][0].startswith("`--"))
    rows = table[2:]
    assert sorted(row[0] for row in rows) == sorted(f"`--{flag}`" for flag in default)
    for quoted, spellings, shown, meaning in rows:
        flag = quoted.strip("`-")
        known = [
            f"`--{spelling}`" if meant == flag else f"`--{spelling}` (`{format_setting(meant)}`)"
            for spelling, meant in presets.ALIASES.items()
            if flag == (next(iter(meant)) if isinstance(meant, dict) else meant)
        ]
        assert spellings == ", ".join(known), flag
        value = (default[flag] or "output/<preset>") if flag == "output_dir" else default[flag]
        assert_shows(presets, flag, value, shown)
        assert meaning, f"{flag} has no meaning"
        assert name != "README.md" or meaning == MEANINGS[flag], flag


def assert_shows(presets, flag: str, value, shown: str) -> None:
    """A cell of a table is the value of the flag."""
    if value is None or value == "":
        assert shown == "", f"{flag} has no value"
    elif isinstance(value, bool):
        assert shown == ("on" if value else "off"), f"{flag} is {value}"
    else:
        assert re.fullmatch("`[^`]+`", shown), f"{flag}: {shown} is not in backticks"
        read = parse(presets, [f"--{flag}={shown.strip('`')}"], f"the value of {flag}")
        assert getattr(read, flag) == value, f"{flag} is {value}, not {shown}"


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_table_of_presets_is_theirs(folder, name):
    """All recipes, whatever differs between two of them, and how many images a step of each has."""
    presets, path = module(folder, "presets"), ROOT / folder / name
    (table,) = (table for table in Document(path).tables if "`full_8p`" in table[0])
    made = preset_table(presets, (table[0][0], table[-1][0]))
    assert "\n".join(made) in path.read_text(encoding="utf-8"), "run python3 -m ci.flag_tables"
    recipes = {name.strip("`"): presets.PRESETS[name.strip("`")] for name in table[0][1:]}
    assert list(recipes) == [
        name for name in presets.PRESETS if name not in ("quickstart", "own", "tiny") and not name.startswith("eval_")
    ]
    *rows, images = table[2:]
    for flag, *cells in rows:
        for values, shown in zip(recipes.values(), cells, strict=True):
            assert_shows(presets, flag.strip("`"), values[flag.strip("`")], shown)
    known = [flag.strip("`") for flag, *_ in rows]
    rest = [{key: value for key, value in values.items() if key not in known} for values in recipes.values()]
    elsewhere = {key for values in rest for key, value in values.items() if value != rest[0][key]}
    assert elsewhere <= {"output_dir", "master_port"}
    assert {"lr", "device_batch_size", "weight_decay"} <= set(known)
    assert images[1:] == [
        str(values["nnodes"] * values["devices"] * values["device_batch_size"]) for values in recipes.values()
    ]


@each_document
def test_flags_in_the_text_exist(path):
    """In `--flag` and `--flag=a|b` of the text, and in the comments of shell blocks."""
    folders = [path.parent.name] if path.parent.name in FOLDERS else FOLDERS
    train = {name for folder in folders for name in train_flags(folder)}
    known = (
        train
        | {"version"}
        | {name for folder in folders for name in vars(parse_of_script((folder, "predict.py"), PREDICT))}
    )
    known |= {name for folder in folders for name in vars(parse_of_script((folder, "export.py"), PREDICT[::2]))}
    if folders is FOLDERS:
        known |= set(vars(benchmark.parse(["data", "--model", "ICNet"])[1]))
        known |= set(vars(check.parse(["--model", "ICNet"])[0]))
    document = Document(path)
    blocks = [fence.content for fence in document.fences if fence.language in SHELLS]
    comments = [line.partition("#")[2] for block in blocks for line in block.splitlines()]
    spans = [span for span in document.code_spans() if span.startswith("--")]
    for text in comments + spans:
        unknown = {flag.replace("-", "_") for flag in FLAG.findall(text)} - known
        assert not unknown, f"{path}: there is no flag {', '.join(unknown)} ({text})"
    for span in spans:
        words = span.replace(" N", " 1").split()
        if not all(map(FLAG.fullmatch, words)) and FLAG.match(span)[1] in train:
            for argv in itertools.product(*map(alternatives, words)):
                assert any(accepts(folder, argv) for folder in folders), f"{path}: {span} is refused"


def train_flags(folder: str) -> set[str]:
    """Every name that the folder's train.py takes."""
    presets = module(folder, "presets")
    default = next(iter(presets.PRESETS.values()))
    switches = {f"no_{name}" for flags in FLAGS.values() for name, (kind, _) in flags.items() if kind is bool}
    return {"help", "preset", *default, *presets.ALIASES, *(name for name in switches if name[3:] in default)}


def alternatives(word: str) -> list[str]:
    """'a|b' -> a, b; '--flag=a|b' -> --flag=a, --flag=b."""
    flag, equals, values = word.rpartition("=")
    return [flag + equals + value for value in values.split("|")]


def without_files(argv: Iterable[str]) -> list[str]:
    """The words but for a file that the parser would read: it is the reader's own."""
    return [word for word in argv if not word.startswith("--config=")]


def accepts(folder: str, argv: Iterable[str]) -> bool:
    argv = without_files(argv)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        parse_args(module(folder, "presets"), list(argv))
        return True
    return False


# ---- commands

PARSERS = {"benchmark.py": benchmark.parse, "cache.py": cache.parse}
PREDICT = ["--checkpoint=best.pt", "--input=pictures", "--output=results"]


@each_document
def test_commands_would_be_accepted(path):
    found = 0
    for line, folder, words in Document(path).commands():
        for before, word, *argv in (["", *words][index:] for index in range(len(words))):
            if script := script_of(folder, before, word):
                assert script.is_file(), f"{path}: {line}: there is no {script}"
                check_arguments(script.resolve(), argv, line)
                found += 1
                break
    assert found


def script_of(folder: Path, before: str, word: str) -> Path | None:
    """The file of the repository that a word of a command names; None for any other word."""
    if before == "-m" and (ROOT / word.partition(".")[0]).is_dir():
        return ROOT / f"{word.replace('.', '/')}.py"
    if word.startswith(("-", "/", "https:")) or not word.endswith((".py", ".sh", ".txt")):
        return None
    return folder / word


def check_arguments(script: Path, argv: list[str], line: str) -> None:
    """Let the parser that would read the arguments of the script read them."""
    name, owner, argv = script.name, script.parent, without_files(argv)
    if owner == ROOT / "common" / "tools" and name in ("benchmark.py", "cache.py"):
        parse(None, argv, line, lambda _, argv: PARSERS[name](argv))
        return
    if owner == ROOT / "ci" and name in ("quickstart.sh", "quickstart.py", "smoke.py"):
        folder = argv.pop(0) if argv and not argv[0].startswith("-") else "ICNet"
        argv = ["--preset", "quickstart", *argv]
    elif owner.name == "test" and name.startswith("train_"):
        folder = owner.parent.name
        argv = ["--preset", script.stem.removeprefix("train_"), *argv]
    elif name in ("train.py", *READERS):
        folder = owner.name
    else:
        return
    assert folder in FOLDERS, f"{line}: there is no model {folder}"
    presets = module(folder, "presets")
    for run in re.findall(r"(?:^|[ =/])output/(\w+)/", " ".join(argv)):
        assert run in presets.PRESETS, f"{line}: no preset writes to output/{run}"
    if name in READERS:
        parse((folder, name), argv, line, parse_of_script)
    else:
        parse(presets, argv, line)


def parse(owner, argv: list[str], line: str, parser: Callable = parse_args) -> Namespace | None:
    """What the parser makes of the arguments; the test fails, with the parser's reason, when it refuses them."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            return parser(owner, argv)
        except SystemExit as end:
            if end.code == 0:  # --help
                return None
    pytest.fail(f"{line}\n{said.getvalue()}")


class Parsed(Exception):
    """Ends a script once its arguments have been read."""


# script of a folder -> where the function is that reads its arguments
READERS = {
    "predict.py": (common.scores.predict, "parse_predict_args"),
    "export.py": (common.scores.export, "parse_export_args"),
}


def parse_of_script(owner: tuple[str, str], argv: list[str]) -> Namespace:
    """The arguments as the script of a folder reads them; it goes no further."""
    folder, name = owner
    home, reader = READERS[name]
    real, script = getattr(home, reader), str(ROOT / folder / name)

    def stop(*arguments, **options):
        raise Parsed(real(*arguments, **options))

    with (
        patch.object(home, reader, stop),
        patch.object(sys, "argv", [script, *argv]),
        patch.object(sys, "path", sys.path.copy()),
        pytest.raises(Parsed) as parsed,
    ):
        runpy.run_path(script, run_name="__main__")
    return parsed.value.args[0]
