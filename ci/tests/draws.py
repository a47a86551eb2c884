"""What tests of augmentations have in common: a generator that gives chosen values, a picture, a comparison."""

import numpy as np
from PIL import Image


class Draws:
    """A generator that gives the values it was made with, each within the range that is asked for."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, low, high, endpoint=False):
        value = self.values.pop(0)
        assert low <= value <= high and (endpoint or value < high), (low, value, high)
        return value

    def uniform(self, low, high):
        return self.integers(low, high, endpoint=True)

    def random(self):
        return self.integers(0, 1)


def a_picture(height, width):
    """Noise of single pixels below, of blocks above: fine grain, flat parts and edges."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = image[: height // 2 : 4, ::4].repeat(4, 0).repeat(4, 1)[: height // 2, :width]
    return Image.fromarray(image)


def levels(one, other):
    return np.abs(np.asarray(one, np.int64) - np.asarray(other, np.int64))
