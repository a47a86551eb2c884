"""The networks of the folders with fewer channels: their runs take the same way, in a tenth of the time.

What a network computes is tested with all of its channels elsewhere, and so are the runs of the scripts.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from ci.tests.folders import FOLDERS, module

GROUP, LEFT = 32, 8  # of every 32 channels 8 are left; numbers of classes and of colours, which are smaller, stay


class Fewer(int):
    """How many channels are left of so many. Sums stay sums: 96 -> 24, and 96 + 3 -> 24 + 3.

    A layer keeps this as its width. Whoever asks it for that, to build another one that fits, gets no fewer again; and
    it is equal to the number that it stands for, with which a network may compare it.
    """

    def __new__(cls, channels: int):
        if isinstance(channels, cls):
            return channels
        self = super().__new__(cls, channels // GROUP * LEFT + channels % GROUP)
        self._of = int(channels)
        return self

    def __eq__(self, other) -> bool:
        return other in (int(self), self._of)

    def __ne__(self, other) -> bool:
        return not self == other

    __hash__ = int.__hash__


def _narrowed(init: Callable, widths: int) -> Callable:
    """The constructor of a layer whose first so many arguments are numbers of channels."""

    @functools.wraps(init)
    def call(layer, *arguments, **options) -> None:
        given = inspect.signature(init).bind(layer, *arguments, **options)
        for name in list(given.arguments)[1 : 1 + widths]:
            given.arguments[name] = Fewer(given.arguments[name])
        init(*given.args, **given.kwargs)

    return call


def _of_narrow_layers(init: Callable) -> Callable:
    """The constructor of a network."""

    @functools.wraps(init)
    def call(network, *arguments, **options) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Conv2d, "__init__", _narrowed(nn.Conv2d.__init__, 2))
            patch.setattr(nn.BatchNorm2d, "__init__", _narrowed(nn.BatchNorm2d.__init__, 1))
            init(network, *arguments, **options)

    return call


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Meanwhile the networks of all folders are narrow, but those whose preset `tiny` chooses its channels itself."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in FOLDERS:
            presets = module(folder, "presets").PRESETS
            if presets["tiny"].get("base_channels") == presets["default"].get("base_channels"):
                network = inspect.signature(module(folder, "model").build_model).return_annotation
                patch.setattr(network, "__init__", _of_narrow_layers(network.__init__))
        yield
