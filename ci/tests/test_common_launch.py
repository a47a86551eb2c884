"""common/launch.sh and common/env_npu.sh, in a copy of the tree that holds nothing but them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLER = (ROOT / "ICNet" / "test" / "train_full_1p.sh").read_text()
# Tells how it was started, and ends with the exit code that a flag asks for.
TRAIN = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "folder": os.getcwd(), "cann": os.environ.get("FAKE_CANN"),
                  "queue": os.environ.get("TASK_QUEUE_ENABLE"), "with": os.environ.get("STARTED_BY")}))
sys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 0)
"""
DEFAULTS = {
    "TASK_QUEUE_ENABLE": "2",
    "HCCL_CONNECT_TIMEOUT": "1200",
    "ASCEND_GLOBAL_LOG_LEVEL": "3",
    "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
}


@pytest.fixture
def tree(tmp_path):
    """<tmp>/a tree/{common,Net}: the system folders that the scripts look into lie in <tmp>/system instead."""
    root = tmp_path / "a tree"
    (root / "common").mkdir(parents=True)
    for name in ("launch.sh", "env_npu.sh"):
        text = (ROOT / "common" / name).read_text()
        for folder in ("/usr/local/Ascend", "/etc/Ascend", "/dev/davinci_manager"):
            text = text.replace(folder, f"{tmp_path}/system{folder}")
        (root / "common" / name).write_text(text)
    test = root / "Net" / "test"
    test.mkdir(parents=True)
    for name in ("train_full_1p.sh", "train_performance_8p.sh", "train_eval_1p.sh"):
        (test / name).write_text(CALLER)
    shutil.copy(ROOT / "ICNet" / "env_npu.sh", root / "Net")
    (root / "Net" / "train.py").write_text(TRAIN)
    (tmp_path / "home").mkdir()
    return root


def python_that_tells(path: Path, name: str, has_torch: bool = True) -> Path:
    """A Python which hands on the name it was started by; without torch it has the standard library alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    without = "" if has_torch else "-S"
    path.write_text(f'#!/bin/sh\nexport STARTED_BY={name}\nexec "{sys.executable}" {without} "$@"\n')
    path.chmod(0o755)
    return path


def environment(tree, **more):
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL")}
    return keep | {"HOME": str(tree.parent / "home"), "PYTHON": sys.executable} | more


def start(tree, *arguments, script="Net/test/train_full_1p.sh", cwd=None, **more):
    """(what train.py told, the finished process)"""
    run = subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd or tree,
        env=environment(tree, **more),
        capture_output=True,
        text=True,
    )
    return json.loads(run.stdout) if run.stdout else None, run


# ---- launch.sh


@pytest.mark.parametrize("preset", ["full_1p", "performance_8p", "eval_1p"])
def test_the_preset_is_the_name_of_the_script(tree, preset):
    told, run = start(tree, script=f"Net/test/train_{preset}.sh")
    assert told["argv"] == [f"{tree}/Net/train.py", "--preset", preset]
    assert (run.returncode, run.stderr) == (0, "")


def test_arguments_arrive_as_they_are(tree):
    given = ["--data_path", "my data/a  b", "--lr=0.1", "", "*", "$HOME", "a'b\"c", "--"]
    told, _ = start(tree, *given)
    assert told["argv"][3:] == given


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_exit_code_is_that_of_training(tree, code):
    assert start(tree, str(code))[1].returncode == code


@pytest.mark.parametrize(
    "below, script",
    [
        ("Net/test", "train_full_1p.sh"),
        ("Net/test", "./train_full_1p.sh"),
        ("Net", "test/train_full_1p.sh"),
        ("common", "../Net/test/train_full_1p.sh"),
        ("..", "a tree/Net/test/train_full_1p.sh"),
    ],
)
def test_it_can_be_called_from_anywhere_and_stays_there(tree, below, script):
    told, run = start(tree, script=script, cwd=tree / below)
    assert told["argv"] == [f"{tree}/Net/train.py", "--preset", "full_1p"], run.stderr
    assert told["folder"] == str((tree / below).resolve())


def test_it_can_be_called_by_its_absolute_path(tree, tmp_path):
    told, _ = start(tree, script=tree / "Net/test/train_full_1p.sh", cwd=tmp_path / "home")
    assert told["argv"][0] == f"{tree}/Net/train.py"


def test_an_exported_cdpath_does_not_lead_it_elsewhere(tree, tmp_path):
    (tmp_path / "home" / "Net" / "test").mkdir(parents=True)
    told, _ = start(tree, CDPATH=str(tmp_path / "home"))
    assert told["argv"] == [f"{tree}/Net/train.py", "--preset", "full_1p"]


def test_python3_of_the_path_is_the_default(tree, tmp_path):
    python = python_that_tells(tmp_path / "bin" / "python3", "python3")
    path = f"{python.parent}:{os.environ['PATH']}"
    assert start(tree, PYTHON="", PATH=path)[0]["with"] == "python3"
    other = python_that_tells(tmp_path / "an other" / "python", "named")
    assert start(tree, PYTHON=str(other), PATH=path)[0]["with"] == "named"


def test_the_environment_of_the_quickstart_is_used_where_python_lacks_torch(tree, tmp_path):
    bare = python_that_tells(tmp_path / "bin" / "python", "bare", has_torch=False)
    full = python_that_tells(tmp_path / "bin" / "full", "full")
    python_that_tells(tree / ".venv" / "bin" / "python", "venv")
    assert start(tree, PYTHON=str(bare))[0]["with"] == "venv"
    assert start(tree, PYTHON=str(full))[0]["with"] == "full"


def test_a_python_with_torch_that_lacks_another_package_is_named_with_it(tree, tmp_path):
    bare = python_that_tells(tmp_path / "bin" / "python", "bare", has_torch=False)
    for name in ("torch", "torchvision", "numpy", "PIL", "scipy", "tensorboardX"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").touch()
    told, run = start(tree, PYTHON=str(bare), PYTHONPATH=str(tmp_path / "site"))
    assert (told, run.returncode) == (None, 2)
    assert run.stderr.count("\n") == 1 and "lacks tqdm; pip install -r requirements.txt" in run.stderr
    (tmp_path / "site" / "tqdm.py").touch()
    assert start(tree, PYTHON=str(bare), PYTHONPATH=str(tmp_path / "site"))[0]["with"] == "bare"


def test_without_torch_anywhere_one_line_says_what_to_do(tree, tmp_path):
    bare = python_that_tells(tmp_path / "bare" / "python3", "bare", has_torch=False)
    told, run = start(tree, PYTHON=str(bare))
    assert (told, run.returncode) == (None, 2)
    assert run.stderr.count("\n") == 1 and "ci/quickstart.sh" in run.stderr


def test_a_home_is_not_needed(tree):
    run = subprocess.run(
        ["env", "-u", "HOME", "bash", "Net/test/train_full_1p.sh"],
        cwd=tree, env=environment(tree), capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")


def test_without_cann_nothing_of_it_is_set_or_said(tree):
    told, run = start(tree)
    assert (told["queue"], told["cann"], run.stderr) == (None, None, "")


# Like CANN's own: reads variables that may be unset, and ends in a state that is not zero.
CANN = """
export FAKE_CANN="{name}"
export LD_LIBRARY_PATH="/fake:$LD_LIBRARY_PATH"
export ASCEND_HOME_PATH="{home}"
export ASCEND_OPP_PATH="{home}/opp"
[ -n "$NEVER_SET_ANYWHERE" ]
"""


def cann_home(folder: Path) -> Path:
    """The folders of it that torch_npu looks for."""
    for part in ("opp", "runtime", "compiler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


def install_cann(folder: Path, name: str, before: str = "") -> None:
    home = cann_home(folder / "latest" if folder.name == "ascend-toolkit" else folder)
    (folder / "set_env.sh").write_text(before + CANN.format(name=name, home=home))


def tell_install_path(tmp_path: Path, path: Path) -> None:
    """As CANN's installer writes it down."""
    info = tmp_path / "system/etc/Ascend/ascend_cann_install.info"
    info.parent.mkdir(parents=True)
    info.write_text(f"Version=8.0\nInstall_Path={path}\nUserName=root\nInstall_Path=/not/this/one\n")


def test_on_a_host_with_cann_its_environment_is_sourced(tree, tmp_path):
    install_cann(tmp_path / "home" / "Ascend" / "cann", "of the user")
    told, run = start(tree, "--lr", "0.1", TASK_QUEUE_ENABLE="1")
    assert (told["cann"], told["queue"]) == ("of the user", "1")
    assert told["argv"][1:] == ["--preset", "full_1p", "--lr", "0.1"]
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("there", ["system/dev/davinci_manager", "system/usr/local/Ascend/driver", "home/Ascend/x"])
def test_on_a_host_with_an_npu_and_no_cann_training_starts_with_a_warning(tree, tmp_path, there):
    (tmp_path / there).mkdir(parents=True)
    told, run = start(tree)
    assert (told["argv"][1:], told["queue"], run.returncode) == (["--preset", "full_1p"], None, 0)
    assert "no CANN under" in run.stderr and run.stderr.count("\n") == 1


def test_on_a_host_whose_cann_is_broken_training_starts_with_a_warning(tree, tmp_path):
    install_cann(tmp_path / "home" / "Ascend" / "cann", "broken", "exit 7\n")
    told, run = start(tree)
    assert (told["argv"][1:], told["queue"], run.returncode) == (["--preset", "full_1p"], None, 0)
    assert "does not set ASCEND_HOME_PATH" in run.stderr and run.stderr.count("\n") == 1


# ---- env_npu.sh


def sourced(tree, options="", before=":", file="common/env_npu.sh", **more):
    """The variables of a shell after it has sourced the file, and the finished process.

    On stderr, after what the file says: the code that sourcing it gave, and the options of the shell before and after.
    """
    command = (
        f'set {options or "--"}; {before}; before="$-:$SHELLOPTS"; code=0; source "{file}" || code=$?; '
        '[ "$before" = "$-:$SHELLOPTS" ] && echo "code $code, same options" >&2; env -0'
    )
    run = subprocess.run(
        ["bash", "-c", command], cwd=tree, env=environment(tree, **more), capture_output=True, text=True
    )
    return dict(line.split("=", 1) for line in run.stdout.split("\0") if "=" in line), run


@pytest.mark.parametrize("file", ["common/env_npu.sh", "Net/env_set.sh"])
def test_started_instead_of_sourced_it_says_what_to_do(tree, tmp_path, file):
    """The original's env_set.sh installed packages, by `bash env_set.sh`."""
    shutil.copy(ROOT / "DeeplabV3" / "env_set.sh", tree / "Net")
    install_cann(tmp_path / "home/Ascend/cann", "there")
    run = subprocess.run(["bash", file], cwd=tree, env=environment(tree), capture_output=True, text=True)
    name = Path(file).name
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        f"{name}: source me in the shell that trains: source {name}; to install the packages: python3 -m pip install "
        "-r requirements.txt\n"
    )


EACH_SHELL = pytest.mark.parametrize("options", ["", "-eu", "-euo pipefail", "-fC"])
PLACES = [
    "opt/my ascend/cann",
    "opt/my ascend/ascend-toolkit",
    "opt/my ascend/nnae",
    "opt/my ascend",
    "system/usr/local/Ascend/cann",
    "system/usr/local/Ascend/ascend-toolkit",
    "system/usr/local/Ascend/nnae",
    "home/Ascend/cann",
    "home/Ascend/ascend-toolkit",
    "home/Ascend/nnae",
]


@EACH_SHELL
@pytest.mark.parametrize("place", PLACES)
def test_cann_is_found_in_each_of_its_places(tree, tmp_path, place, options):
    install_cann(tmp_path / place, place)
    if place.startswith("opt"):
        tell_install_path(tmp_path, tmp_path / "opt/my ascend")
    for file in ("common/env_npu.sh", "Net/env_npu.sh"):
        values, run = sourced(tree, options, file=file)
        assert values.get("FAKE_CANN") == place, run.stderr
        assert {name: values[name] for name in DEFAULTS} == DEFAULTS
        assert run.stderr == "code 0, same options\n"


def test_the_places_are_tried_in_order(tree, tmp_path):
    tell_install_path(tmp_path, tmp_path / "opt/my ascend")
    for place in PLACES:
        install_cann(tmp_path / place, place)
    for place in PLACES:
        assert sourced(tree)[0]["FAKE_CANN"] == place
        (tmp_path / place / "set_env.sh").unlink()
    assert "FAKE_CANN" not in sourced(tree)[0]


@pytest.mark.parametrize("name", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
def test_an_environment_that_is_set_already_stays(tree, tmp_path, name):
    install_cann(tmp_path / "home" / "Ascend" / "cann", "another one")
    chosen = cann_home(tmp_path / "chosen")
    values, run = sourced(tree, "-eu", **{name: str(chosen), "ASCEND_OPP_PATH": str(chosen / "opp")})
    assert values[name] == str(chosen)
    assert "FAKE_CANN" not in values
    assert values["TASK_QUEUE_ENABLE"] == "2"
    assert run.stderr == "code 0, same options\n"


@EACH_SHELL
@pytest.mark.parametrize("name", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
@pytest.mark.parametrize("folder, home", [("mine", "mine"), ("ascend-toolkit", "ascend-toolkit/latest")])
def test_a_home_without_the_rest_of_the_environment_is_sourced(tree, tmp_path, folder, home, name, options):
    """As images with the one variable have it; torch_npu wants ASCEND_OPP_PATH too. No other CANN takes its place."""
    install_cann(tmp_path / folder, "the chosen one")
    install_cann(tmp_path / "home" / "Ascend" / "cann", "another one")
    values, run = sourced(tree, options, **{name: str(tmp_path / home)})
    assert (values["FAKE_CANN"], run.stderr) == ("the chosen one", "code 0, same options\n")
    assert values["ASCEND_OPP_PATH"] == str(tmp_path / home / "opp")


@EACH_SHELL
@pytest.mark.parametrize("lacking", ["ASCEND_OPP_PATH", "opp", "runtime", "compiler", "runtime compiler"])
def test_what_an_environment_that_is_set_lacks_is_one_line(tree, tmp_path, lacking, options):
    chosen = cann_home(tmp_path / "chosen")
    given = {"ASCEND_HOME_PATH": str(chosen), "ASCEND_OPP_PATH": str(chosen / "opp")}
    words = {"ASCEND_OPP_PATH": "ASCEND_OPP_PATH (not set)", "opp": f"ASCEND_OPP_PATH={chosen}/opp (no such folder)"}
    for part in lacking.split():
        words.setdefault(part, f"{chosen}/{part} (no such folder)")
        if part == "ASCEND_OPP_PATH":
            del given[part]
        else:
            (chosen / part).rmdir()
    values, run = sourced(tree, options, **given)
    assert not set(DEFAULTS) & set(values)
    assert run.stderr.splitlines() == [
        "env_npu.sh: torch_npu does not find what it needs of CANN: "
        f"{', '.join(words[part] for part in lacking.split())}; source its set_env.sh in this shell, or install CANN's "
        "toolkit and the operators of the chip (ops, kernels) anew",
        "code 1, same options",
    ]


@EACH_SHELL
def test_what_an_installation_lacks_is_one_line_and_nothing_is_set(tree, tmp_path, options):
    home = tmp_path / "home" / "Ascend" / "cann"
    install_cann(home, "incomplete")
    (home / "compiler").rmdir()
    values, run = sourced(tree, options)
    assert not {"FAKE_CANN", "ASCEND_HOME_PATH", *DEFAULTS} & set(values)
    assert run.stderr.splitlines() == [
        f"env_npu.sh: torch_npu does not find what it needs of CANN: {home}/compiler (no such folder); install CANN's "
        "toolkit and the operators of the chip (ops, kernels) anew",
        "code 1, same options",
    ]


def test_values_of_the_user_stay(tree, tmp_path):
    install_cann(tmp_path / "home" / "Ascend" / "cann", "cann")
    mine = dict.fromkeys(DEFAULTS, "7")
    values, _ = sourced(tree, "-eu", **mine)
    assert {name: values[name] for name in DEFAULTS} == mine


@EACH_SHELL
@pytest.mark.parametrize(
    "script",
    [
        "set -euo pipefail; export LD_LIBRARY_PATH=; NEVER_SET_ANYWHERE=1\n",
        "set +f; set +C; set +o pipefail\n",
    ],
)
def test_options_that_the_script_of_cann_changes_are_as_before(tree, tmp_path, script, options):
    install_cann(tmp_path / "home" / "Ascend" / "cann", "cann", script)
    values, run = sourced(tree, options)
    assert values["FAKE_CANN"] == "cann"
    assert run.stderr == "code 0, same options\n"


@EACH_SHELL
@pytest.mark.parametrize(
    "script",
    [
        "exit 7\n",
        "return 3\n",
        "set -e; false\n",
        "set -u; : $NEVER_SET_ANYWHERE\n",
        "if then\n",  # no shell script at all
    ],
)
def test_a_script_of_cann_that_fails_does_not_end_the_shell(tree, tmp_path, script, options):
    install_cann(tmp_path / "home" / "Ascend" / "cann", "cann", script)
    values, run = sourced(tree, options)
    assert run.returncode == 0
    assert not {"FAKE_CANN", *DEFAULTS} & set(values)
    message, last = run.stderr.splitlines()
    assert f"{tmp_path}/home/Ascend/cann/set_env.sh does not set ASCEND_HOME_PATH" in message
    assert last == "code 1, same options"


@EACH_SHELL
def test_without_cann_nothing_is_set_and_one_line_says_so(tree, options):
    values, run = sourced(tree, options)
    assert run.returncode == 0
    assert not set(DEFAULTS) & set(values)
    message, last = run.stderr.splitlines()
    assert message.startswith("env_npu.sh: no CANN under") and "install CANN" in message
    assert last == "code 1, same options"


def test_a_home_is_not_needed_to_source_it(tree, tmp_path):
    install_cann(tmp_path / "system/usr/local/Ascend/cann", "cann")
    values, run = sourced(tree, "-eu", before="unset HOME")
    assert (values["FAKE_CANN"], run.stderr) == ("cann", "code 0, same options\n")


@pytest.mark.parametrize("with_cann", [True, False])
def test_nothing_but_the_environment_is_left_behind(tree, tmp_path, with_cann):
    if with_cann:
        install_cann(tmp_path / "home" / "Ascend" / "cann", "cann")
    command = (
        'names() { compgen -A function; compgen -v | grep -v "^_$\\|BASH\\|PIPESTATUS\\|LINENO\\|RANDOM\\|SECONDS"; }; '
        'before=; after=; before=$(names); source common/env_npu.sh "an argument"; after=$(names); '
        'diff <(echo "$before") <(echo "$after") | grep "^[<>]"'
    )
    run = subprocess.run(["bash", "-c", command], cwd=tree, env=environment(tree), capture_output=True, text=True)
    assert run.stderr == "" if with_cann else run.stderr.count("\n") == 1
    new = {line[2:] for line in run.stdout.splitlines()}
    of_cann = {"FAKE_CANN", "LD_LIBRARY_PATH", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH"}
    assert new == ({*DEFAULTS, *of_cann} if with_cann else set())
