"""Gets releases of the plugin, and the torch that one of them needs, into a folder that git ignores."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "torch_npu"
COMMAND = "python3 -m ci.torch_npu_names"
# Reading needs no wheel for this machine: any serves.
ANY_MACHINE = (
    "--python-version=3.11 --implementation=cp --abi=cp311 --platform=manylinux2014_x86_64 "
    "--platform=manylinux_2_28_x86_64"
).split()


class Unavailable(Exception):
    """Something that the check needs cannot be had here; the message says what, why and what to do, in one line."""


def unpacked(version: str, download: bool, to_import: bool = False) -> Path:
    """The folder of a release, which holds torch_npu/.

    download: ask pip for what is not there yet. to_import: the release has to be for this machine and this Python.
    Raises Unavailable.
    """
    folder = CACHE / f"{version}-{_tag() if to_import else 'cp311'}"
    if folder.is_dir():
        return folder
    if not download:
        raise Unavailable(f"torch_npu {version} is not in {CACHE.relative_to(ROOT)}; `{COMMAND}` downloads it")
    with tempfile.TemporaryDirectory() as inbox:
        options = ["--no-deps", "--only-binary=:all:", f"--dest={inbox}", *(() if to_import else ANY_MACHINE)]
        _pip(sys.executable, "download", [f"torch-npu=={version}"], options)
        (wheel,) = Path(inbox).glob("*.whl")
        return _unpack(wheel, folder)


def given(wheel: Path) -> tuple[str, Path]:
    """Version and folder of a wheel that the user names. Raises Unavailable when it is none for this Python."""
    named = re.fullmatch(r"torch_npu-([\w.]+)-(cp\d+)-.*\.whl", wheel.name)
    if not named or not wheel.is_file():
        raise Unavailable(f"TORCH_NPU_WHEEL={wheel} is no file torch_npu-VERSION-{_tag()}-*.whl; name one, or unset it")
    if named[2] != _tag():
        raise Unavailable(f"TORCH_NPU_WHEEL={wheel} is for {named[2]}, and this Python is {_tag()}; name one for it")
    folder = CACHE / f"{named[1]}-{_tag()}"
    return named[1], folder if folder.is_dir() else _unpack(wheel, folder)


def python_with_torch(version: str, download: bool) -> Path:
    """The Python of an environment of its own that has the CPU build of this torch, numpy and yaml.

    The plugin refuses a torch that is built for another accelerator. Raises Unavailable.
    """
    folder = CACHE / f"torch-{version}-{_tag()}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    if not download:
        raise Unavailable(f"torch {version}+cpu is not in {CACHE.relative_to(ROOT)}; `{COMMAND}` installs it there")
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    _pip(python, "install", [f"torch=={version}+cpu", "numpy", "pyyaml"])
    (folder / "complete").touch()
    return python


def run(*command: str | Path, **options) -> str:
    """The standard output of a program. Raises Unavailable when there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except FileNotFoundError:
        raise Unavailable(f"there is no {command[0]} on this machine; install it") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines[-1:] or [""]
        words = " ".join(str(word) for word in command[1:3])
        raise Unavailable(f"{Path(command[0]).name} {words} ended with {done.returncode}: {errors[-1].strip()}")
    return done.stdout


def _pip(python: str | Path, what: str, packages: list[str], options: Iterable[str] = ()) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        run(python, "-m", "pip", what, "--quiet", "--retries=1", *options, *packages, env=environment)
    except Unavailable as error:
        raise Unavailable(
            f"{packages[0]} cannot be had ({error}); go online, or name a folder or an index that has it in "
            "PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL"
        ) from None


def _unpack(wheel: Path, folder: Path) -> Path:
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(half)
    return half.rename(folder)


def _tag() -> str:
    """That of this Python in the names of wheels, such as cp311."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}"
