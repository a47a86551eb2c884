"""ci/environment.sh: what is installed is kept, and what is missing is found. ci/quickstart.py: how Ctrl-C ends it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import patch

import pytest

from ci.quickstart import constant_prediction, prediction, run_to_the_end
from ci.tests.folders import ROOT


def in_shell(script: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"source ci/environment.sh\n{script}"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


def test_requirements_that_are_not_met_are_listed():
    asked = "numpy torch>=2.6 no-such-package numpy>=99 numpy>=1.20 no-such-package>=1"
    done = in_shell(f'_missing "$PYTHON" {asked}'.replace(">=", "\\>="))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["no-such-package", "numpy>=99", "no-such-package>=1"]


def test_the_active_environment_is_used_when_it_has_everything():
    done = in_shell('use_environment numpy "torch>=2.6"; echo "$python"')
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable), done.stderr


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def says(python: Path | str, code: str) -> str:
    """What a command in Python prints, in a process that sees nothing of this one's environment."""
    command = [python, "-c", code]
    return subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=True).stdout.strip()


def packages_of(environment: Path) -> Path:
    return Path(says(python_of(environment), "import sysconfig; print(sysconfig.get_path('purelib'))"))


def files_of(name: str, version: str, needs: str = "", code: str = "") -> dict[str, str]:
    """path -> text of an installed package, or of its wheel."""
    needs = f"Requires-Dist: {needs}\n" if needs else ""
    about = f"{name}-{version}.dist-info"
    return {
        f"{name}/__init__.py": f"__version__ = {version!r}\n{code}",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: none\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": f"{name}/__init__.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n",
    }


def install(folder: Path, *package: str) -> None:
    for path, text in files_of(*package).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def offer(folder: Path, *package: str) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{package[0]}-{package[1]}-py3-none-any.whl", "w") as wheel:
        for path, text in files_of(*package).items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def environment_with_pip(tmp_path_factory) -> Path:
    environment = tmp_path_factory.mktemp("environments") / "with_pip"
    done = in_shell(f'python=$PYTHON; _make_venv "{environment}" "torch numpy "')
    assert done.returncode == 0, done.stderr
    return environment


@pytest.fixture
def environment(environment_with_pip, tmp_path) -> Path:
    """An environment with nothing but pip."""
    return Path(shutil.copytree(environment_with_pip, tmp_path / "environment", symlinks=True))


@pytest.fixture
def index(tmp_path) -> dict[str, str]:
    """The variables with which pip finds two pairs of torch and torchvision, and nothing else."""
    wheels = tmp_path / "wheels"
    for torch, torchvision in (("2.12.0", "0.27.0"), ("2.15.0", "0.29.0")):
        offer(wheels, "torchvision", torchvision, f"torch=={torch}")
    offer(wheels, "torch", "2.15.0")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}


VERSIONS = "from importlib.metadata import version; print(version('torch'), version('torchvision'))"


@pytest.mark.parametrize("installed", ["2.12.0", "2.12.0+cpu"])
def test_a_torch_that_is_there_is_not_replaced_for_the_newest_torchvision(environment, index, installed):
    install(packages_of(environment), "torch", installed)
    done = in_shell(f'python="{python_of(environment)}"; _install "torchvision "', **index)
    assert done.returncode == 0, done.stderr
    assert says(python_of(environment), VERSIONS) == f"{installed} 0.27.0"


@pytest.mark.parametrize("installed", ["", "2.5.0"])
def test_a_torch_that_is_missing_or_too_old_comes_with_its_torchvision(environment, index, installed):
    if installed:
        install(packages_of(environment), "torch", installed)
    done = in_shell(f'python="{python_of(environment)}"; _install "torch>=2.6 torchvision "', **index)
    assert done.returncode == 0, done.stderr
    assert says(python_of(environment), VERSIONS) == "2.15.0 0.29.0"


def test_an_unfinished_environment_is_made_anew_and_sees_the_active_one(index, tmp_path):
    """The whole way. The active environment has a torch with a plugin and lacks a package."""
    root, active = tmp_path / "repository", tmp_path / "active"
    (root / "ci").mkdir(parents=True)
    shutil.copy(ROOT / "ci" / "environment.sh", root / "ci")
    pipless(active)
    install(packages_of(active), "torch", "2.12.0+cpu")
    install(tmp_path / "sources", "torch_npu", "2.12.0")
    (packages_of(active) / "editable.pth").write_text(f"{tmp_path / 'sources'}\n")  # as `pip install -e` leaves it

    pipless(root / ".venv")  # as it is when the start is ended while pip comes in

    script = f'source "{root}/ci/environment.sh"; use_environment "torch>=2.6" torchvision; echo "$python"'
    done = in_shell(script, PYTHON=str(python_of(active)), **index)
    assert done.returncode == 0, done.stderr
    new = python_of(root / ".venv")
    assert done.stdout.splitlines()[-1] == str(new)
    assert says(new, "import torch; print(torch.__file__)") == str(packages_of(active) / "torch" / "__init__.py")
    plugin = tmp_path / "sources" / "torch_npu" / "__init__.py"
    assert says(new, "import torch_npu; print(torch_npu.__file__)") == str(plugin)
    assert says(new, VERSIONS) == "2.12.0+cpu 0.27.0"
    assert not (packages_of(active) / "torchvision").exists()  # that environment belongs to the user


def test_packages_of_a_python_outside_environments_are_seen(environment):
    base = says(sys.executable, "import sys; print(sys._base_executable)")
    done = in_shell(f'python="{base}"; _share_packages "{environment}"')
    assert done.returncode == 0, done.stderr
    listed = "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\\n')"
    there, seen = (set(says(python, listed).split("\n")) for python in (base, python_of(environment)))
    assert there and there < seen


def pipless(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)


def half_of_pip(folder: Path) -> None:
    pipless(folder)
    (packages_of(folder) / "pip-24.0.dist-info").mkdir()


def folders_alone(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)


def made_by_another_tool(folder: Path) -> None:
    pipless(folder)
    install(packages_of(folder), "numpy", "2.0.0")


def something_else(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def a_file(path: Path) -> None:
    path.write_text("name of an environment")


def nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize("there", [nothing, pipless, half_of_pip, folders_alone])
def test_what_was_left_unfinished_is_made_anew(tmp_path, there):
    there(tmp_path / "venv")
    done = in_shell(f'python=echo; ! _has_pip "{tmp_path}/venv/bin/python" && _make_venv "{tmp_path}/venv" torch')
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"-m venv --clear {tmp_path}/venv"


@pytest.mark.parametrize("there", [made_by_another_tool, something_else, a_file])
def test_what_is_not_ours_is_refused_in_one_line_and_stays(tmp_path, there):
    there(tmp_path / "venv")
    before = sorted(tmp_path.rglob("*"))
    done = in_shell(f'python=false; id() {{ echo 1000; }}; _make_venv "{tmp_path}/venv" torch')
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "remove it" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_python_that_is_too_old_is_refused_in_one_line(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = in_shell("use_environment numpy", PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "install Python >= 3.10" in done.stderr


def test_a_disk_that_torch_would_fill_is_refused_in_one_line():
    """Before pip leaves half of an environment behind."""
    for free_kib, lacking, code in (
        (9 << 20, "torch>=2.6 numpy ", 2),
        (10 << 20, "torch>=2.6 numpy ", 0),
        (9 << 20, "numpy torch ", 2),
        (0, "torchvision numpy ", 0),
    ):
        done = in_shell(f"df() {{ echo Filesystem; echo /dev/vda 1 1 {free_kib} 99% /; }}\n_check_room . {lacking!r}")
        assert done.returncode == code, (free_kib, lacking, done.stderr)
        assert done.stderr.count("\n") == bool(code)
        assert not code or ("9 GiB free" in done.stderr and "free some" in done.stderr)


SLOW_TO_END = """
import sys, time
try:
    print("training", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(1)  # longer than subprocess.run waits before it kills
    print("train.py: interrupted; continue", file=sys.stderr)
    sys.exit(130)
"""


def test_ctrl_c_leaves_the_last_word_to_the_training(tmp_path):
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "ci" / "quickstart.py", tmp_path / "ci")
    (tmp_path / "common").symlink_to(ROOT / "common")
    shutil.copytree(ROOT / "ICNet", tmp_path / "ICNet", ignore=lambda folder, names: {*names} - {"presets.py"})
    (tmp_path / "ICNet" / "train.py").write_text(SLOW_TO_END)
    command = [sys.executable, tmp_path / "ci" / "quickstart.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as quickstart:
        assert quickstart.stdout.readline() == "training\n"
        os.killpg(quickstart.pid, signal.SIGINT)  # as a terminal does: to the quickstart and to the training
        said = quickstart.communicate()
    assert (quickstart.returncode, said) == (130, ("", "train.py: interrupted; continue\n"))


@pytest.mark.parametrize("end, code", [("exit 0", 0), ("exit 2", 2), ("kill -KILL $$", 137), ("kill -INT $$", 130)])
def test_the_exit_code_is_the_one_that_a_shell_would_see(end, code):
    assert run_to_the_end(["bash", "-c", end]) == code


@pytest.mark.parametrize("score, said", [("miou", "mIoU 0.300, pixel accuracy 0.600"), ("jaccard", "jaccard 0.000, ")])
def test_the_quickstart_shows_what_one_class_everywhere_scores(score, said):
    """Of 10 labelled pixels 6 are road: IoU 0.6 and 0 of the two classes there are; the third one is nowhere."""
    classes = {name: {"truth_pixels": pixels} for name, pixels in (("road", 6), ("rail", 0), ("car", 4))}
    line = constant_prediction({"scores": [score], "classes": classes})
    assert line.startswith(f"'road' everywhere: {said}")


def test_the_quickstart_says_how_to_predict_pictures_of_ones_own(tmp_path):
    """With the Python that has what is needed, by its path: that of .venv is in nobody's PATH."""
    weights = ROOT / "ICNet" / "output" / "of mine" / "best.pt"
    with patch.object(sys, "executable", str(ROOT / ".venv" / "bin" / "python")):
        words = shlex.split(prediction(ROOT / "ICNet", weights))
    assert words == [
        ".venv/bin/python",
        "ICNet/predict.py",
        "--checkpoint=ICNet/output/of mine/best.pt",
        "--input=FOLDER",
    ]
    assert f"--checkpoint={tmp_path}/best.pt" in prediction(ROOT / "ICNet", tmp_path / "best.pt")
