"""Asks a real torch_npu that is imported on stub libraries, in a process of its own."""

import json
import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

from ci.torch_npu_names.answers import Answer
from ci.torch_npu_names.uses import Use
from ci.torch_npu_names.wheels import ROOT, Unavailable, run

# Each function of CANN does nothing, and returns 0 or a null pointer.
COUNT_DEVICES = "aclrtGetDeviceCount"
STUB = "void *{name}(void) {{ return 0; }}\n"
STUB_OF_COUNT = "int aclrtGetDeviceCount(unsigned *count) { *count = 0; return 0; }\n"
OF_THE_SYSTEM = ("libc.", "libm.", "libdl.", "libpthread.", "librt.", "libgcc_s.", "libstdc++.", "ld-linux")
OF_PYTHON = ("Py", "_Py")


def ask(python: Path, root: Path, uses: dict[str, list[Use]]) -> dict[str, Answer]:
    """The answer on each name. python: one that has the torch of this plugin. root: the folder that holds torch_npu/.

    Raises Unavailable when the plugin cannot be imported here.
    """
    torch_library = run(python, "-c", "import torch; print(torch.__path__[0])", env=_environment())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        libraries = make_stubs(root / "torch_npu", Path(torch_library.strip()) / "lib", work)
        question = {
            "libraries": [str(library) for library in libraries],
            "uses": {name: [asdict(use) for use in those] for name, those in uses.items()},
        }
        (work / "question.json").write_text(json.dumps(question), encoding="utf-8")
        paths = os.pathsep.join([str(ROOT), str(root)])
        run(
            python, "-m", "ci.torch_npu_names.probe", "question.json", "answers.json", cwd=work, env=_environment(paths)
        )
        answers = json.loads((work / "answers.json").read_text(encoding="utf-8"))
    return {name: Answer(**answer) for name, answer in answers.items()}


def make_stubs(plugin: Path, torch_libraries: Path, work: Path) -> list[Path]:
    """Libraries in `work` that stand in for CANN's: those that the plugin asks for and nobody brings.

    Raises Unavailable without a C compiler or binutils.
    """
    binaries, wanted = _needed_by_import(plugin)
    theirs = sorted(torch_libraries.glob("*.so*"))
    absent = sorted(wanted - {path.name for path in theirs})
    if not absent:
        raise Unavailable(f"the binaries of {plugin} ask for no library of CANN; is that the plugin?")
    missing = set().union(*(_symbols(path, "--undefined-only") for path in binaries))
    for path in (*binaries, *theirs):
        missing -= _symbols(path, "--defined-only")
    source = "".join(STUB.format(name=name) for name in sorted(missing - {COUNT_DEVICES})) + STUB_OF_COUNT
    (work / "stubs.c").write_text(source, encoding="utf-8")
    (work / "empty.c").write_text("", encoding="utf-8")
    made = []
    for index, name in enumerate(absent):  # the first brings all the functions
        text = "empty.c" if index else "stubs.c"
        run("cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", name, text, cwd=work)
        made.append(work / name)
    return made


def _needed_by_import(plugin: Path) -> tuple[list[Path], set[str]]:
    """The plugin's own libraries that its import loads, and the names of the others that those ask for."""
    own = {path.name: path for path in plugin.glob("lib/*.so")}
    loaded, others, left = [], set(), [*plugin.glob("_C*.so")]
    while left:
        path = left.pop()
        loaded.append(path)
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", path)):
            if name not in own:
                others.add(name)
            elif own[name] not in (*loaded, *left):
                left.append(own[name])
    return loaded, {name for name in others if not name.startswith(OF_THE_SYSTEM)}


def _symbols(library: Path, which: str) -> set[str]:
    """Names of the C functions that a library defines or lacks, but for those of the system, which have a version."""
    lines = (line.split() for line in run("nm", "-D", which, library).splitlines())
    names = {words[-1] for words in lines if len(words) > 1 and words[-2] not in "wv"}
    return {name for name in names if not name.startswith(("_Z", *OF_PYTHON)) and "@" not in name}


def _environment(paths: str = "") -> dict[str, str]:
    """Without what would bring another plugin or the simulated one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASCEND", "PYTHON"))}
    return {**kept, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPATH": paths}
