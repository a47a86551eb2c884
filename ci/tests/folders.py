"""The model folders of the repository: every folder with a train.py."""

import importlib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/train.py"))


def module(folder: str, name: str) -> ModuleType:
    """The module `name` of a folder, as its own scripts import it."""
    return importlib.import_module(f"{folder}.{name}")
