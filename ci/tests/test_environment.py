"""ci/environment.sh: what is installed is kept, and what is missing is found."""

import subprocess
import sys

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


def test_a_torch_that_is_there_is_seen_in_the_new_environment(tmp_path):
    """With the plugin that belongs to it: an environment of its own would have to install another one."""
    done = in_shell(f'python=$PYTHON; _make_venv "{tmp_path}/venv"')
    assert done.returncode == 0, done.stderr
    assert "include-system-site-packages = true" in (tmp_path / "venv" / "pyvenv.cfg").read_text()


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
