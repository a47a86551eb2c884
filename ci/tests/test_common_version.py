"""common/version.py: --version of every script, and what it says."""

from ci.tests import small_folder
from ci.tests.folders import FOLDERS, said_without
from common import version
from common.args import parse_args
from common.tools.__main__ import commands


def test_every_script_tells_its_version_without_importing_torch():
    scripts = [f"{folder}/{name}.py" for folder in FOLDERS for name in ("train", "predict", "export")]
    scripts += [f"common/tools/{name}.py" for name in commands()]
    said = said_without(["torch"], scripts, "--version")
    assert said.splitlines() == [version.version_line()] * len(scripts) and len(scripts) > 20


def test_the_version_names_the_commit_where_there_is_one(monkeypatch):
    monkeypatch.setattr(version, "git", lambda *words: {"rev-parse": "0123456789abcdef", "status": ""}[words[0]])
    assert version.version_line() == f"segmentation-zoo {version.VERSION}, commit 0123456789ab"
    monkeypatch.setattr(version, "git", lambda *words: "0123456789abcdef")
    assert version.version_line().endswith("0123456789ab, with changed files")
    monkeypatch.setattr(version, "git", lambda *words: None)
    assert ", no git checkout, sources " in version.version_line()
    assert not hasattr(parse_args(small_folder, []), "version"), "it is no value of a run"
