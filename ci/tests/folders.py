"""The model folders of the repository, every folder with a train.py, and how tests run one of them."""

import importlib
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

from common.args import format_value, parse_args

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/train.py"))


def module(folder: str, name: str) -> ModuleType:
    """The module `name` of a folder, as its own scripts import it."""
    return importlib.import_module(f"{folder}.{name}")


def command_line(*words, **flags) -> list[str]:
    """What follows train.py: `words` as they are, then --name=value of each of the `flags` that is not None."""
    given = [f"--{name}={format_value(value)}" for name, value in flags.items() if value is not None]
    return [*map(str, words), *given]


def parsed(folder: str, *words, **flags) -> Namespace:
    """The arguments of the folder's train.py."""
    return parse_args(module(folder, "presets"), command_line(*words, **flags))


def said_without(modules: list[str], scripts: list[str], word: str) -> str:
    """What scripts of the repository print, one after another in one new process that imports none of the modules."""
    code = (
        "import runpy, sys\n"
        f"for script in {[str(ROOT / script) for script in scripts]}:\n"
        f"    sys.argv = [script, {word!r}]\n"
        "    try:\n"
        "        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
        f"    assert not {set(modules)} & set(sys.modules), script\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(folder: str, *words, processes: int = 1, feed=None, **flags) -> tuple:
    """(run, data sets, network): what `python train.py` has before its processes join, each of so many.

    Everything that the command line and the input can have wrong is found here, as an InputError.
    """
    from common.run import Run

    run = Run(parsed(folder, *words, **flags), module(folder, "presets"), processes, feed)
    return run, *run.build(module(folder, "train").build)


def carry_out(folder: str, *words, processes: int = 1, feed=None, **flags) -> dict:
    """What `python train.py` with these words and flags does in each of its processes; the result of the run.

    Whether torch takes deterministic operators alone is afterwards what it was.
    """
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        run, data, model = built(folder, *words, processes=processes, feed=feed, **flags)
        run.join()
        return module(folder, "train").main(run.args, run, data, model)
    finally:
        torch.use_deterministic_algorithms(deterministic)
