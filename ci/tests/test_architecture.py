"""The rules of the repository's structure, read from the source texts."""

import ast
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ci.mutations import FAULTS, line_of
from ci.tests.folders import FOLDERS, ROOT, module, said_without
from common.flags import PATHS
from common.tools.__main__ import commands

PYTHON_FILES = sorted(
    path
    for folder in ("common", "ci", *FOLDERS)
    for path in (ROOT / folder).rglob("*.py")
    if "output" not in path.relative_to(ROOT).parts
)
IN_EACH_FOLDER = (
    "__init__.py train.py model.py data.py presets.py predict.py export.py env_npu.sh requirements.txt "
    "README.md README.zh.md "
    "test/train_full_1p.sh test/train_full_8p.sh test/train_performance_1p.sh test/train_performance_8p.sh "
    "test/train_eval_1p.sh test/train_eval_8p.sh"
).split()


def imported_roots(path) -> set[str]:
    """The first part of every module name that a file imports; '.' for a relative import."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add("." if node.level else node.module.split(".")[0])
    return roots


def test_there_are_folders():
    assert "ICNet" in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_has_the_same_files_as_the_others(folder):
    missing = [name for name in IN_EACH_FOLDER if not (ROOT / folder / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_rule(path):
    roots = imported_roots(path)
    owner = path.relative_to(ROOT).parts[0]
    assert "." not in roots, "imports are absolute, so that a file means the same wherever it is started"
    other_folders = set(FOLDERS) - {owner}
    if owner == "common":
        assert not roots & (set(FOLDERS) | {"ci"}), "common imports no folder"
    elif owner != "ci":
        assert not roots & (other_folders | {"ci"}), "no folder imports another"
    local_names = {name.removesuffix(".py") for name in IN_EACH_FOLDER if name.endswith(".py")}
    assert not roots & local_names, "`from ICNet.model import ...`, never `from model import ...`"


def code_of(path) -> str:
    """A file without its docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def test_common_names_no_folder():
    """A command of common/tools is told one by --model. In code, small and capital letters are the same."""
    folders = rf"(?<![A-Za-z0-9])({'|'.join(FOLDERS)})(?![A-Za-z0-9])"
    texts = [path for path in (ROOT / "common").rglob("*") if path.suffix in (".py", ".sh", ".txt")]
    assert not [path for path in texts if re.search(folders, path.read_text(encoding="utf-8"))] and len(texts) > 50
    codes = [path for path in texts if path.suffix == ".py"]
    assert not [path for path in codes if re.search(folders, code_of(path), re.IGNORECASE)]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_needed(path):
    top_level = ast.parse(path.read_text(encoding="utf-8")).body
    names = {alias.name for node in top_level if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top_level if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names if name} & {"torch_npu", "apex", "onnx"}


def test_only_entry_scripts_touch_the_import_path():
    entries = {ROOT / folder / name for folder in FOLDERS for name in ("train.py", "predict.py", "export.py")}
    entries |= {ROOT / "ci" / name for name in ("smoke.py", "quickstart.py", "flag_tables.py")}
    entries |= {ROOT / "AttentionUNet" / "dataset.py"}
    entries |= {ROOT / "DeeplabV3" / "tools" / "convert_datasets" / "cityscapes.py"}
    entries |= {ROOT / "common" / "tools" / f"{name}.py" for name in commands()}
    touching = {path for path in PYTHON_FILES if "sys.path" in path.read_text(encoding="utf-8")}
    assert touching - set((ROOT / "ci" / "tests").rglob("*.py")) <= entries


def test_launch_scripts_are_identical():
    texts = {path.read_bytes() for folder in FOLDERS for path in (ROOT / folder / "test").glob("train_*.sh")}
    assert len(texts) == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_launch_script_names_a_preset(folder):
    presets = __import__(f"{folder}.presets", fromlist=["PRESETS"]).PRESETS
    scripts = {path.stem.removeprefix("train_") for path in (ROOT / folder / "test").glob("train_*.sh")}
    assert scripts <= set(presets)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("script", ["train.py", "predict.py", "export.py"])
def test_flags_are_read_without_importing_torch(folder, script):
    """Importing torch takes seconds; `--help` has to answer at once."""
    assert "--checkpoint" in said_without(["torch"], [f"{folder}/{script}"], "--help")


@pytest.mark.parametrize("folder", FOLDERS)
def test_presets_are_one_flat_dictionary_each_with_the_same_names(folder):
    presets = __import__(f"{folder}.presets", fromlist=["PRESETS"]).PRESETS
    names = [set(values) for values in presets.values()]
    assert all(each == names[0] for each in names)
    assert not any(isinstance(value, dict) for values in presets.values() for value in values.values())


def test_no_cuda_only_calls():
    """Code of one kind of device is in common/device/: npu.py, cuda.py, and world.py, which knows them all."""
    device = ROOT / "common" / "device"
    for path in PYTHON_FILES:
        owner = path.relative_to(ROOT).parts[0]
        if owner == "ci" or path == device / "world.py":
            continue
        words = [".cuda()"] if path == device / "cuda.py" else [".cuda()", "torch.cuda."]
        if path != device / "npu.py":
            words += [".npu()", "torch.npu."]
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in words), path


def filled_lines(path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_training_script_is_read_in_one_sitting(folder):
    path = ROOT / folder / "train.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 130
    functions = {node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    assert functions["main"].end_lineno - functions["main"].lineno + 1 <= 40
    assert "for step, images, target in run.steps(data.train):" in filled_lines(path), "the loop is visible"


def test_training_scripts_share_little_but_the_loop():
    lines = Counter(line for folder in FOLDERS for line in set(filled_lines(ROOT / folder / "train.py")))
    assert sum(1 for line, folders in lines.items() if folders >= 3) <= 40


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    """But for those that draw pictures, and tests."""
    parts = path.relative_to(ROOT).parts
    if "samples" in parts or parts[0] == "ci":
        return
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in names if name not in ("self", "cls")]) <= 7, node.name


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_git_ignores_what_lies_where_data_is_by_default(tmp_path):
    """Also when it is a link to another disk, which a pattern with a slash at its end does not mean."""
    paths = {f"{folder}/output" for folder in FOLDERS}
    for folder in FOLDERS:
        for values in module(folder, "presets").PRESETS.values():
            for name in PATHS - {"checkpoint"}:
                if values.get(name) not in (None, "", "none", "sample"):
                    first, *more = Path(values[name]).parts
                    paths.add(f"{folder}/test/{more[0]}" if first == "test" else f"{folder}/{first}")
    paths |= {"AttentionUNet/ISIC", "AttentionUNet/test/backup"}
    assert {"ICNet/data", "DynamicUNet/VOCdevkit", "AttentionUNet/test/output"} <= paths
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    command = ["git", "check-ignore", *paths]  # nothing lies there: they are taken for files, or links
    ignored = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.split()
    assert sorted(paths - set(ignored)) == []


def test_each_planted_fault_has_its_one_place():
    """`python3 -m ci.mutations` cannot plant what the code no longer says."""
    faults = [fault for fault in FAULTS if (ROOT / fault.file).exists()]
    assert [f"{fault.file}: {fault.what}" for fault in faults if line_of(fault) is None] == []
