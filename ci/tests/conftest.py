"""Data that several test files need."""

import fcntl
import os
import shutil
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.narrow import narrow_networks
from common.device import npu

# The tensors of the tests are tiny: one thread is fastest, and two test processes do not wait for each other. A process
# that is forked from one with several threads would wait for ever for those it has not got.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
# Drawing the page of a run takes seconds: test_report_page.py has one.
os.environ["NO_REPORT"] = "1"

CITIES = ("aachen", "zurich")


# Files of half a minute or more. One that came last would keep one process busy while the other has nothing left.
LONG = ("test_written_before.py", "test_sixth_model.py", "test_dynamicunet.py", "test_contract.py")
# What compiles leaves threads that are in the way of a process which is forked afterwards and trains.
LAST = ("test_common_compiling.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.path.name in LAST) - (item.path.name in LONG))


@pytest.fixture(scope="module", autouse=True)
def disk_is_given_back(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the fixtures of a file left in temporary folders goes with its last test, unless one of them failed.

    pytest does so for the folder of each test alone, and else removes them when all tests of all files have passed.
    """
    root, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    earlier = set(root.iterdir())
    yield
    if request.session.testsfailed == failed:
        for path in set(root.iterdir()) - earlier:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def ask_about_npus_anew() -> None:
    """A process asks once whether an NPU can be used; each test has plugins of its own."""
    npu.problem.cache_clear()


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """The networks that are built in this process have a quarter of their channels; see `narrow_networks`."""
    with narrow_networks():
        yield


@pytest.fixture
def tiny_cityscapes(tmp_path) -> Callable[..., Path]:
    """tiny_cityscapes(train=2, val=1, size=(32, 48), name="cityscapes") -> the root of a folder in Cityscapes' layout.

    size is (height, width). Pictures are noise in blocks of 4 pixels, labels blocks of ids from 0 to 33: each of the
    34 where there is room. Both depend on the split and the index alone.
    """

    def make(train: int = 2, val: int = 1, size: tuple[int, int] = (32, 48), name: str = "cityscapes") -> Path:
        root = tmp_path / name
        for split, count in (("train", train), ("val", val)):
            for index in range(count):
                city = CITIES[index % len(CITIES)]
                rng = np.random.default_rng((split == "val", index))
                blocks = -(-size[0] // 4), -(-size[1] // 4)
                labels = np.resize(rng.permutation(34), blocks).astype(np.uint8)
                for picture, part, ending in (
                    (rng.integers(0, 256, (*blocks, 3), dtype=np.uint8), "leftImg8bit", "leftImg8bit"),
                    (labels, "gtFine", "gtFine_labelIds"),
                ):
                    folder = root / part / split / city
                    folder.mkdir(parents=True, exist_ok=True)
                    pixels = picture.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]
                    Image.fromarray(pixels).save(folder / f"{city}_{index:06d}_000019_{ending}.png")
        return root

    return make


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 150 columns with colours: the file to write to, and a function that reads what it shows."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    os.set_blocking(ours, False)
    screen = os.fdopen(theirs, "w")

    def shown() -> str:
        screen.flush()
        text = b""
        while True:
            try:
                text += os.read(ours, 65536)
            except BlockingIOError:
                return text.decode()

    yield screen, shown
    screen.close()
    os.close(ours)
