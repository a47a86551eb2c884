"""ci/torch_npu_names: how names are collected and found; with `bash ci/test.sh --npu`, ours in the real plugin."""

import ctypes
import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from ci.tests.folders import FOLDERS, ROOT
from ci.torch_npu_names import __main__ as names
from ci.torch_npu_names import importing, probe, wheels
from ci.torch_npu_names.answers import Answer
from ci.torch_npu_names.reading import Sources
from ci.torch_npu_names.uses import Call, Use, collect
from ci.torch_npu_names.wheels import Unavailable

DEMANDED = os.environ.get("TORCH_NPU_NAMES") == "demanded"  # set by --npu
INVENTED = ("torch.npu.no_such_name", "torch.npu.matmul.no_such_setting", "torch_npu.optim.NpuFusedNothing")
MISUSED = "torch.npu.set_mm_bmm_format_nd"  # which takes is_nd


def write(root, files: dict[str, str]) -> list:
    """The files with these texts, below root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return [root / name for name in files]


@pytest.fixture
def used(tmp_path):
    """used(text) -> the names that a source text uses, each with the lines."""

    def names_of(text: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for use in collect(tmp_path, write(tmp_path, {"common/example.py": text})):
            found.setdefault(use.name, []).append(use.line)
        return found

    return names_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch\ntorch.npu.synchronize()", "torch.npu.synchronize"),
        ("import torch as t\nt.npu.config.allow_internal_format = False", "torch.npu.config.allow_internal_format"),
        ("from torch import npu\nnpu.Stream", "torch.npu.Stream"),
        ("import torch_npu\ntorch_npu.profiler.profile", "torch_npu.profiler.profile"),
        ("import torch\nbackend = torch.npu\nbackend.Event", "torch.npu.Event"),
        ("import torch\na, backend = 1, torch.npu\nbackend.Event", "torch.npu.Event"),
        ("import torch\nx = f(torch.npu.is_available() or 1)", "torch.npu.is_available"),
        ("import torch\ngetattr(torch, kind).set_device(0)", "torch.npu.set_device"),
        ("import torch\ngetattr(torch.npu, 'set_option')", "torch.npu.set_option"),
        ("import torch\nbackend = getattr(torch, kind)\nbackend.Stream()", "torch.npu.Stream"),
        ("import torch\nb = None if kind == 'cpu' else getattr(torch, kind)\nb.Stream()", "torch.npu.Stream"),
        ("import torch\nb = torch.cuda if kind else torch.npu\nb.Stream()", "torch.npu.Stream"),
        ("import torch\nif (b := getattr(torch, kind)):\n    b.Stream()", "torch.npu.Stream"),
        ("import torch\nx: torch.npu.Stream = None", "torch.npu.Stream"),
        ("import torch\ndef f(x=torch.npu.Stream): ...", "torch.npu.Stream"),
        ("import torch\nf = lambda: torch.npu.device_count()", "torch.npu.device_count"),
        ("import torch\nwith torch.npu.device(1): ...", "torch.npu.device"),
        ("import importlib\nimportlib.import_module('torch_npu').npu_format_cast", "torch_npu.npu_format_cast"),
        ("import importlib\nimportlib.import_module('torch_npu.contrib')", "torch_npu.contrib"),
        ("modules = {'ascend': 'torch_npu.optim'}", "torch_npu.optim"),
        ("from torch_npu.contrib import transfer_to_npu", "torch_npu.contrib.transfer_to_npu"),
        ("import torch_npu.contrib", "torch_npu.contrib"),
    ],
)
def test_a_name_is_collected(used, text, name):
    assert [*used(text)] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.cuda.synchronize()\ntorch.full((), 1)",
        "from common import npu\nnpu.set_up()",
        "import torch\ndef f(torch): torch.npu.nothing()",
        "import torch\nbackend = torch.npu\nbackend = []\nbackend.append(1)",
        "import torch\nbackend = torch.npu\ndef f():\n    backend = []\n    backend.append(1)",
        "import torch\nbackend = torch.npu\ndef f():\n    for backend in []:\n        backend.append(1)",
        "import torch\ngetattr(torchvision, name).weights",
        "import torch\ngetattr(torch, 'float16').itemsize",
        "version('torch_npu')\nraise ValueError('torch_npu.optim is missing')",
        "import torch\n'a docstring about torch.npu.nothing'",
    ],
)
def test_what_is_no_name_of_the_plugin_is_not_collected(used, text):
    assert used(text) == {}


def test_branches_leave_what_either_of_them_binds(used):
    text = """\
        import torch
        if kind == "npu":
            backend = torch.npu
        elif kind == "cuda":
            backend = torch.cuda
        else:
            backend = None
        backend.Stream()
        """
    assert used(text) == {"torch.npu.Stream": [8]}


def test_an_attribute_of_self_is_followed_into_other_methods(used):
    text = """\
        import torch
        class Timer:
            def __init__(self, device):
                self.backend = getattr(torch, device.type)
            def stop(self):
                self.backend.synchronize()
        """
    assert used(text) == {"torch.npu.synchronize": [6]}


def test_functions_that_return_the_module_are_followed_across_files(tmp_path):
    files = {
        "common/a.py": "from common import b\nfrom common.b import backend as of\nof(1).Event()\nb.backend(1).Stream()",
        "common/b.py": "import torch\ndef f(): backend(0).seed()\ndef backend(x):\n    return getattr(torch, x)\n",
    }
    uses = collect(tmp_path, write(tmp_path, files))
    assert [(use.name, use.file, use.line) for use in uses] == [
        ("torch.npu.Event", "common/a.py", 3),
        ("torch.npu.Stream", "common/a.py", 4),
        ("torch.npu.seed", "common/b.py", 2),
    ]


def test_the_arguments_of_calls_are_collected(tmp_path):
    text = "import torch\ntorch.npu.a(1, b=2)\ntorch.npu.c(*x, **y)\ntorch.npu.d\nimport torch_npu.e\n"
    uses = collect(tmp_path, write(tmp_path, {"common/x.py": text}))
    assert uses == [
        Use("torch.npu.a", "common/x.py", 2, Call(1, ("b",))),
        Use("torch.npu.c", "common/x.py", 3, Call(0, (), complete=False)),
        Use("torch.npu.d", "common/x.py", 4),
        Use("torch_npu.e", "common/x.py", 5, imported=True),
    ]


def test_the_optimizers_of_the_plugin_are_known_by_the_calls_that_choose_them(tmp_path):
    text = """\
        import torch
        from common.step.optimizer import fused_optimizer
        fused_optimizer(torch.optim.SGD, model.parameters(), world, "torch_npu", lr=1, momentum=0.9)
        def main(args, run):
            KINDS = {"adam": torch.optim.Adam, "other": torch.optim.Adagrad}
            self.amp = Amp(self.model, run.optimizer(parameters), run.amp.optimizer())
        """
    uses = collect(tmp_path, write(tmp_path, {"ICNet/train.py": text}))
    assert uses == [
        Use(
            "torch_npu.optim.NpuFusedAdam", "ICNet/train.py", 5, Call(1, ("lr", "weight_decay", "betas")), imported=True
        ),
        Use("torch_npu.optim.NpuFusedSGD", "ICNet/train.py", 3, Call(1, ("lr", "momentum")), imported=True),
    ]


def test_the_sources_are_all_of_the_product_and_no_test():
    files = {path.relative_to(ROOT).as_posix() for path in names.product_files(ROOT)}
    assert {
        "common/device/world.py",
        "common/tools/timed_training.py",
        *(f"{folder}/train.py" for folder in FOLDERS),
    } <= files
    assert not any(file.startswith("ci/") for file in files)
    collected = {use.name for use in collect(ROOT, names.product_files(ROOT))}
    optimizers = {f"torch_npu.optim.NpuFused{kind}" for kind in ("Adam", "AdamW", "SGD")}
    assert {"torch.npu.is_available", "torch.npu.Stream", *optimizers} <= collected


# A plugin in small, with the ways in which the real one defines its names.
PLUGIN = {
    "torch_npu/__init__.py": "import torch_npu.npu\nfrom torch_npu import optim\n",
    "torch_npu/npu/__init__.py": """\
        from .utils import synchronize, _private
        from .memory import *
        from .streams import Stream as Lane
        import torch_npu._C
        from torch.storage import Lazy, _Storage
        if True:
            seed = torch_npu._C._seed
        config = settings._Config()
        count: int = 3
        """,
    "torch_npu/npu/utils.py": "\n\ndef synchronize(device=None): ...\ndef _private(a, /, b, *, c, d=1): ...\n",
    "torch_npu/npu/memory.py": "__all__ = ['shown']\ndef shown(**options): ...\ndef hidden(): ...\n",
    "torch_npu/npu/streams.py": """\
        import torch_npu
        class Stream(torch_npu._C._StreamBase):
            def __new__(cls, device=None): ...
            def wait(self): ...
        """,
    "torch_npu/npu/settings.py": """\
        class _Config:
            kept = 1
            def __setattr__(self, name, value):
                if name == "allow_it":
                    pass
        """,
    "torch_npu/optim/__init__.py": "from torch_npu.optim.sgd import SGD\n",
    "torch_npu/optim/sgd.py": "class SGD(Base):\n    def __init__(self, parameters, lr=1): ...\n",
    "torch_npu/_C.so": "\0many words before _seed\0_StreamBase\0query\0",
}


@pytest.fixture
def plugin(tmp_path) -> Sources:
    write(tmp_path, PLUGIN)
    return Sources(tmp_path)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("torch.npu.synchronize", "npu/utils.py:3"),
        ("torch_npu.npu.synchronize", "npu/utils.py:3"),
        ("torch.npu.utils.synchronize", "npu/utils.py:3"),
        ("torch.npu.shown", "npu/memory.py:2"),
        ("torch.npu.memory.hidden", "npu/memory.py:3"),
        ("torch.npu.Lane.wait", "npu/streams.py:4"),
        ("torch.npu.Lane.query", "_C.so (text)"),
        ("torch.npu.seed", "npu/__init__.py:7"),
        ("torch.npu.count", "npu/__init__.py:9"),
        ("torch.npu.config", "npu/__init__.py:8"),
        ("torch.npu.config.allow_it", "npu/settings.py:3"),
        ("torch.npu.config.kept", "npu/settings.py:2"),
        ("torch.npu.Lazy", "npu/__init__.py:5"),
        ("torch_npu.optim", "optim/__init__.py"),
        ("torch_npu.optim.SGD", "optim/sgd.py:1"),
    ],
)
def test_a_name_is_found_in_the_files(plugin, name, where):
    assert plugin.answer(name, []) == Answer(where, True)


@pytest.mark.parametrize(
    "name",
    "torch.npu.hidden torch.npu.Stream torch.npu.nothing torch.npu.config.allow_that torch.npu.Lane.nothing "
    "torch.npu.count.nothing torch_npu.seed torch_npu.optim.Adam torch_npu.nothing.at.all".split(),
)
def test_a_name_that_is_not_in_the_files_is_missing(plugin, name):
    assert plugin.answer(name, []) == Answer("MISSING", False)


@pytest.mark.parametrize(
    ("name", "call", "good"),
    [
        ("torch.npu.synchronize", Call(1, ()), True),
        ("torch.npu.synchronize", Call(0, ("device",)), True),
        ("torch.npu.synchronize", Call(2, ()), False),
        ("torch.npu.synchronize", Call(0, ("stream",)), False),
        ("torch.npu.shown", Call(0, ("whatever",)), True),
        ("torch.npu._private", Call(2, ("c",)), True),
        ("torch.npu._private", Call(1, ("a", "c")), False),
        ("torch.npu._private", Call(2, ()), False),
        ("torch.npu._private", Call(2, (), complete=False), True),
        ("torch.npu.Lane", Call(0, ("device",)), True),
        ("torch.npu.Lane", Call(0, ("priority",)), False),
        ("torch_npu.optim.SGD", Call(1, ("lr",)), True),
        ("torch_npu.optim.SGD", Call(1, ("momentum",)), False),
    ],
)
def test_arguments_are_held_against_the_definition(plugin, name, call, good):
    answer = plugin.answer(name, [Use(name, "common/x.py", 7, call)])
    assert answer.good == good
    assert ("(common/x.py:7)" in answer.text) == (not good)


def test_arguments_of_what_is_compiled_are_not_checked(plugin):
    answer = plugin.answer("torch.npu.seed", [Use("torch.npu.seed", "common/x.py", 7, Call(9, ()))])
    assert answer == Answer("npu/__init__.py:7, arguments not checked", True)


def test_settings_that_take_every_name_have_only_those_they_compare_with():
    """Those of the plugin answer None for a name they do not know, and drop its value."""

    class Settings:
        def __getattr__(self, name):
            return True if name == "allow_it" else None

    assert Settings().no_such_setting is None
    probe.member(Settings(), "allow_it")
    with pytest.raises(AttributeError):
        probe.member(Settings(), "no_such_setting")
    assert probe.member(os.path, "join") is os.path.join
    with pytest.raises(AttributeError):
        probe.member(os.path, "no_such_name")


@pytest.mark.skipif(not all(map(shutil.which, ("cc", "nm", "readelf"))), reason="no C compiler with its tools")
def test_stubs_take_the_place_of_libraries_that_nobody_brings(tmp_path):
    """A small plugin: _C.so calls its own library, one of torch's, and two of a CANN that is then taken away."""
    work, plugin, torch_libraries = tmp_path / "work", tmp_path / "plugin", tmp_path / "torch"
    for folder in (work, plugin / "lib", torch_libraries):
        folder.mkdir(parents=True)
    build(plugin / "lib" / "libown.so", "int own(void) { return 1; }")
    build(torch_libraries / "libtorch_cpu.so", "int of_torch(void) { return 10; }")
    cann = [
        build(tmp_path / "libacl_one.so", "int aclrtGetDeviceCount(unsigned *count) { *count = 8; return 7; }"),
        build(tmp_path / "libacl_two.so", 'char *aclGetRecentErrMsg(void) { return "taken away"; }'),
    ]
    text = """
        int own(void); int of_torch(void); int aclrtGetDeviceCount(unsigned *); char *aclGetRecentErrMsg(void);
        int asked(void) {
            unsigned count = 8;
            int failed = aclrtGetDeviceCount(&count) || aclGetRecentErrMsg();
            return failed ? -1 : own() + of_torch() + 100 * count;
        }"""
    libraries = [plugin / "lib" / "libown.so", torch_libraries / "libtorch_cpu.so", *cann]
    build(plugin / "_C.so", text, *libraries)
    for library in cann:
        library.unlink()
    stubs = importing.make_stubs(plugin, torch_libraries, work)
    assert sorted(stub.name for stub in stubs) == ["libacl_one.so", "libacl_two.so"]
    for library in (*stubs, *libraries[:2]):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    assert ctypes.CDLL(str(plugin / "_C.so")).asked() == 11


def build(library: Path, text: str, *needed: Path) -> Path:
    """A library of this C text, which asks for the others by their names alone."""
    source = library.with_suffix(".c")
    source.write_text(text, encoding="utf-8")
    soname = f"-Wl,--no-as-needed,-soname,{library.name}"
    subprocess.run(["cc", "-shared", "-fPIC", soname, "-o", library, source, *needed], check=True)
    return library


@pytest.fixture
def small_check(tmp_path, monkeypatch, plugin):
    """small_check(text) -> exit code of the command on a source text, with the plugin in small for each release."""

    def check(text: str) -> int:
        uses = collect(tmp_path, write(tmp_path, {"common/example.py": text}))
        monkeypatch.setattr(names, "collect", lambda root, files: uses)
        monkeypatch.setattr(names, "imported", lambda uses, download: {})
        monkeypatch.setattr(names, "unpacked", lambda version, download: tmp_path)
        return names.main()

    return check


def test_the_command_prints_the_table_and_reports_a_name_that_is_not_there(small_check, capsys):
    good = "import torch\ntorch.npu.synchronize(0)\ntorch.npu.synchronize()\n"
    assert small_check(good) == 0
    row = "torch.npu.synchronize | common/example.py:2,3 | npu/utils.py:3 | npu/utils.py:3"
    assert row in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert small_check(good + "torch.npu.no_such_name\ntorch.npu.synchronize(stream=1)\n") == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "torch.npu.no_such_name | common/example.py:4 | MISSING | MISSING" in lines
    assert lines[-1] == "2 names, 2 not as they are used: torch.npu.no_such_name, torch.npu.synchronize"


def test_the_command_says_in_one_line_why_it_cannot_check(monkeypatch, capsys):
    monkeypatch.setenv("TORCH_NPU_WHEEL", "/no/such/file.whl")
    assert names.main() == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1 and "TORCH_NPU_WHEEL=/no/such/file.whl is no file" in told.err


def test_a_wheel_for_another_python_is_refused(tmp_path):
    wheel = tmp_path / "torch_npu-2.13.0-cp27-cp27-manylinux_2_28_x86_64.whl"
    wheel.touch()
    with pytest.raises(Unavailable, match="is for cp27, and this Python is cp3"):
        wheels.given(wheel)


def test_nothing_is_downloaded_unless_that_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "CACHE", ROOT / ".cache" / "no-such-folder")
    monkeypatch.setattr(wheels, "_pip", None)
    with pytest.raises(Unavailable, match="torch_npu 2.6.0 is not in .cache"):
        wheels.unpacked("2.6.0", download=False)
    with pytest.raises(Unavailable, match=r"torch 2\.13\.0\+cpu is not in .cache"):
        wheels.python_with_torch("2.13.0", download=False)


def test_without_a_network_the_reason_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "CACHE", tmp_path)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match=r"torch-npu==2\.6\.0 cannot be had .*; go online, or name a folder") as error:
        wheels.unpacked("2.6.0", download=True)
    assert "\n" not in str(error.value)


def test_a_missing_program_is_named():
    with pytest.raises(Unavailable, match="there is no no-such-compiler on this machine; install it"):
        wheels.run("no-such-compiler", "-c")


@pytest.mark.parametrize(("words", "demanded"), [(["--npu", "-k", "a b"], "demanded"), (["-k", "a b"], "")])
def test_the_switch_demands_the_check_and_other_words_go_to_pytest(tmp_path, words, demanded):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" != pytest ] || printf "[%s]" "$TORCH_NPU_NAMES" "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python)}
    done = subprocess.run(["bash", "ci/test.sh", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"\[{demanded}\]\[-m\]\[pytest\].*\[-k\]\[a b\]", done.stdout), done.stdout


@pytest.fixture(scope="module")
def ours() -> dict[str, list[Use]]:
    """Our names, and some that must be reported."""
    uses = names.by_name(collect(ROOT, names.product_files(ROOT)))
    wrong = [*(Use(name, "x.py", 1) for name in INVENTED), Use(MISUSED, "x.py", 1, Call(0, ("no_such_keyword",)))]
    return uses | {use.name: [use] for use in wrong}


def cannot_be_had(reason: Unavailable):
    if DEMANDED:
        pytest.fail(f"--npu: {reason}", pytrace=False)
    pytest.skip(f"{reason}; `bash ci/test.sh --npu` demands it")


def assert_that_ours_are_found(columns: dict[str, dict[str, Answer]]) -> None:
    wrong = {name: answer.text for answers in columns.values() for name, answer in answers.items() if not answer.good}
    assert "'no_such_keyword' (x.py:1)" in wrong.pop(MISUSED)
    assert wrong == dict.fromkeys(INVENTED, "MISSING")


def test_our_names_are_in_the_plugin_that_is_imported(ours):
    try:
        columns = names.imported(ours, download=DEMANDED)
    except Unavailable as reason:
        cannot_be_had(reason)
    assert_that_ours_are_found(columns)


@pytest.mark.parametrize("version", names.READ)
def test_our_names_are_in_the_files_of_the_plugin(ours, version):
    try:
        columns = names.read(ours, (version,), download=DEMANDED)
    except Unavailable as reason:
        cannot_be_had(reason)
    assert_that_ours_are_found(columns)
