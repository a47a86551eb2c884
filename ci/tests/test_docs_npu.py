"""What the READMEs say of versions is what docs/npu.md says, and what the code asks for."""

import re
import subprocess

import pytest

from ci.documents import CODE_SPAN, Document
from ci.tests.folders import FOLDERS, ROOT
from ci.tests.test_docs import LANGUAGES

NPU = {"README.md": ROOT / "docs" / "npu.md", "README.zh.md": ROOT / "docs" / "npu.zh.md"}
TODAY = ("Python", "torch", "torch-npu", "CANN", "Ascend HDK")  # rows of the READMEs, columns of docs/npu.md


def versions(name: str) -> list[dict[str, str]]:
    """The rows of the table of versions in docs/npu.md or its translation, newest first: {TODAY: version}."""
    (table,) = (table for table in Document(NPU[name]).tables if table[0][:2] == ["torch", "torch-npu"])
    column = {title: next(i for i, cell in enumerate(table[0]) if is_called(cell, title)) for title in TODAY}
    return [{title: row[index] for title, index in column.items()} for row in table[2:]]


def environment(folder: str, name: str) -> dict[str, list[str]]:
    """The rows of the README's table of versions: {TODAY: [original, oldest, recommended]}, and those of the model."""
    (table,) = (table for table in Document(ROOT / folder / name).tables if ["CANN"] in [row[:1] for row in table])
    assert len(table[0]) == 4
    return {next((title for title in TODAY if is_called(row[0], title)), row[0]): row[1:] for row in table[2:]}


def is_called(cell: str, title: str) -> bool:
    """'driver (Ascend HDK)' is called 'Ascend HDK'; the torch of 'torch-npu' is not meant by 'torch'."""
    return cell == title or cell.endswith((f"({title})", f"（{title}）"))


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_readme_has_the_oldest_and_the_newest_row_of_the_table(folder, name):
    rows = environment(folder, name)
    newest, *_, oldest = versions(name)
    assert [rows[title][1:] for title in TODAY] == [[oldest[title], newest[title]] for title in TODAY]
    assert list(rows)[: len(TODAY)] == list(TODAY), "what is asked of the machine comes before what is not needed"


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_rows_are_from_the_newest_to_the_oldest_torch_and_pair_with_the_plugin(name):
    rows = versions(name)
    releases = [(numbers(row["torch"]), numbers(row["CANN"])) for row in rows]
    assert releases[0] == max(releases) and releases[-1] == min(releases)
    assert [torch for torch, _ in releases] == sorted((torch for torch, _ in releases), reverse=True)
    for row in rows:
        assert row["torch-npu"].partition(".post")[0] == row["torch"], row


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_oldest_versions_are_those_that_the_code_takes(name):
    oldest = versions(name)[-1]
    (least,) = re.findall(r"^torch>=(\S+)$", (ROOT / "common" / "requirements.txt").read_text(), re.MULTILINE)
    assert numbers(oldest["torch"])[:2] == numbers(least)
    shell = (ROOT / "ci" / "environment.sh").read_text()
    assert f"sys.version_info < ({', '.join(map(str, numbers(oldest['Python'])[:2]))})" in shell


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_commands_install_the_recommended_versions(name):
    commands = "\n".join(fence.content for fence in Document(NPU[name]).fences)
    newest = versions(name)[0]
    assert re.findall(r"\b(torch|torch-npu)==(\S+)", commands) == [
        ("torch", newest["torch"]),
        ("torch-npu", newest["torch-npu"]),
    ]


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_variables_are_those_that_the_script_sets(name, tmp_path):
    (table,) = (table for table in Document(NPU[name]).tables if table[2][0] == "`TASK_QUEUE_ENABLE`")
    for part in ("opp", "runtime", "compiler"):
        (tmp_path / part).mkdir()
    script = f"set -u; ASCEND_HOME_PATH={tmp_path}; ASCEND_OPP_PATH={tmp_path}/opp; source common/env_npu.sh; env"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    set_by_it = dict(
        line.split("=", 1) for line in done.stdout.splitlines() if line.startswith(("TASK", "HCCL", "ASC"))
    )
    assert {CODE_SPAN.fullmatch(row[0])[1]: row[1] for row in table[2:]} == set_by_it
