"""Draws synthetic street scenes with their labels: the pictures of the embedded sample (samples/layout.py).

A scene is a little world in metres seen by a camera at the origin: x to the right, y up from the ground, z ahead.
Everything is a polygon on an upright or a level plane, painted from far to near into the picture and into the label
map at once, so what the label says is what is seen. Colours of the classes overlap on purpose; shape, texture and
place tell them apart.
"""

from collections.abc import Callable, Iterator
from functools import cache
from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

LABEL = {
    "unlabeled": 0, "ego vehicle": 1, "out of roi": 3, "static": 4, "road": 7, "sidewalk": 8, "parking": 9,
    "rail track": 10, "building": 11, "wall": 12, "fence": 13, "bridge": 15, "pole": 17, "polegroup": 18,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25,
    "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip

Colour = np.ndarray  # [3] float, RGB in 0..255
Rng = np.random.Generator
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]  # coordinates on a plane in metres -> colours [h, w, 3]


# ---- the canvas ------------------------------------------------------------------------------------------------------


class Upright(NamedTuple):
    """A vertical plane through (x, z) along the unit direction (dx, dz); coordinates: metres along it, and height."""

    x: float
    z: float
    dx: float = 1.0
    dz: float = 0.0

    def point(self, a: float, b: float) -> tuple[float, float, float]:
        return self.x + a * self.dx, b, self.z + a * self.dz

    def coordinates(self, slope_u: np.ndarray, slope_v: np.ndarray, camera_height: float):
        """Where the rays with x = slope_u z and y = camera_height - slope_v z meet the plane."""
        across = self.dx - slope_u * self.dz
        across = np.where(abs(across) < 1e-4, 1e-4, across)
        along = (slope_u * self.z - self.x) / across
        return along, camera_height - slope_v * (self.z + along * self.dz)


class Level(NamedTuple):
    """A horizontal plane at height y; coordinates: x and z."""

    y: float = 0.0

    def point(self, a: float, b: float) -> tuple[float, float, float]:
        return a, self.y, b

    def coordinates(self, slope_u: np.ndarray, slope_v: np.ndarray, camera_height: float):
        depth = (camera_height - self.y) / np.maximum(slope_v, 1e-3)
        return slope_u * depth, depth


GROUND = Level()


class Canvas:
    """The picture and the label map of one scene, [height, width] pixels, and the camera that looks at it."""

    def __init__(self, size: tuple[int, int], rng: Rng):
        self.height, self.width = size
        self.focal = 2.0 * self.height
        self.centre_u = self.width * rng.uniform(0.42, 0.58)
        self.horizon_v = self.height * rng.uniform(0.4, 0.5)
        self.camera_height = rng.uniform(1.8, 2.4)
        self.haze = grey(rng, 150, 220, 15)
        self.haze_per_metre = rng.uniform(0.0, 0.004)
        self.picture = Image.new("RGB", (self.width, self.height))
        self.labels = Image.new("L", (self.width, self.height), LABEL["unlabeled"])
        self.brush = ImageDraw.Draw(self.picture)
        self.label_brush = ImageDraw.Draw(self.labels)

    def project(self, x: float, y: float, z: float) -> tuple[int, int]:
        scale = self.focal / max(z, 1.0)
        return round(self.centre_u + scale * x), round(self.horizon_v + scale * (self.camera_height - y))

    def shape(self, plane, outline, colour, label: str | None = None, pattern: Pattern | None = None, holes=None):
        """Paint the polygon `outline` [(a, b), ...] of a plane in one colour or with a pattern.

        Without a label it is a detail of what it lies on. Where `holes(a, b)` is true the picture keeps what was
        there, the label does not: the gaps of a fence belong to the fence, as in Cityscapes.
        """
        corners = [plane.point(a, b) for a, b in outline]
        if pattern is None and holes is None:
            self.facet(corners, colour, label)
            return
        pixels = [self.project(*corner) for corner in corners]
        self._paint(plane, pixels, colour, self._haze_at(corners), pattern, holes)
        if label is not None:
            self.label_brush.polygon(pixels, fill=LABEL[label])

    def facet(self, corners, colour, label: str | None = None) -> None:
        """Paint a polygon of points (x, y, z) in one colour; without a colour it is only labelled."""
        pixels, haze = [self.project(*corner) for corner in corners], self._haze_at(corners)
        if colour is not None:
            self.brush.polygon(pixels, fill=to_pixel(colour * (1 - haze) + self.haze * haze))
        if label is not None:
            self.label_brush.polygon(pixels, fill=LABEL[label])

    def _haze_at(self, corners) -> float:
        depth = sum(corner[2] for corner in corners) / len(corners)
        return min(0.6, max(0.0, depth - 6) * self.haze_per_metre)

    def _paint(self, plane, pixels, colour, haze, pattern, holes) -> None:
        columns, rows = [u for u, _ in pixels], [v for _, v in pixels]
        left, right = max(0, min(columns)), min(self.width, max(columns) + 1)
        top, bottom = max(0, min(rows)), min(self.height, max(rows) + 1)
        if left >= right or top >= bottom:
            return
        slope_u = (np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - self.centre_u) / self.focal
        slope_v = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - self.horizon_v) / self.focal
        a, b = (c.clip(-2e3, 2e3) for c in plane.coordinates(slope_u, slope_v, self.camera_height))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(u - left, v - top) for u, v in pixels], fill=255)
        if holes is not None:
            mask = Image.fromarray(np.where(holes(a, b), 0, np.asarray(mask)).astype(np.uint8))
        colours = colour if pattern is None else pattern(a, b)
        colours = np.broadcast_to(colours * (1 - haze) + self.haze * haze, (bottom - top, right - left, 3))
        self.picture.paste(Image.fromarray(colours.clip(0, 255).astype(np.uint8)), (left, top), mask)

    def rectangle(self, plane, a0, a1, b0, b1, colour, label=None, pattern=None, holes=None):
        self.shape(plane, [(a0, b0), (a1, b0), (a1, b1), (a0, b1)], colour, label, pattern, holes)

    def disc(self, plane, a, b, radius, colour, label=None, corners=18, holes=None):
        outline = [(a + radius * c, b + radius * s) for c, s in circle(corners)]
        self.shape(plane, outline, colour, label, holes=holes)

    def bar(self, plane, start, end, width, colour, label=None):
        """A straight tube between two points of a plane."""
        (a0, b0), (a1, b1) = start, end
        length = max(1e-6, ((a1 - a0) ** 2 + (b1 - b0) ** 2) ** 0.5)
        across, up = (b0 - b1) / length * width / 2, (a1 - a0) / length * width / 2
        outline = [(a0 + across, b0 + up), (a1 + across, b1 + up), (a1 - across, b1 - up), (a0 - across, b0 - up)]
        self.shape(plane, outline, colour, label)


def to_pixel(colour: Colour) -> tuple[int, int, int]:
    return tuple(int(min(255.0, max(0.0, c))) for c in colour)


@cache
def circle(corners: int) -> list[tuple[float, float]]:
    return [(round(cos(2 * pi * i / corners), 6), round(sin(2 * pi * i / corners), 6)) for i in range(corners)]


# ---- colours and textures --------------------------------------------------------------------------------------------


def grey(rng: Rng, low: float, high: float, spread: float) -> Colour:
    """A random brightness with a slight random tint."""
    return (rng.uniform(low, high) + rng.uniform(-spread, spread, 3)).clip(5, 250)


def paint(rng: Rng) -> Colour:
    """Any colour that cars, coats and houses are painted in: often greyish, sometimes bright."""
    if rng.random() < 0.4:
        return grey(rng, 25, 235, 12)
    return rng.uniform(20, 235, 3)


@cache
def noise_tile(kind: str) -> np.ndarray:
    """[256, 256] float32 noise around 0, at most 1 away from it; the same for every picture.

    'grain' is white; 'cloud' holds all scales; 'leaf' is blobs of a few cells. Integer resizing keeps it portable.
    """
    rng = np.random.Generator(np.random.PCG64(20_16))
    octaves = {"grain": {256: 1.0}, "cloud": {4: 0.4, 8: 0.3, 16: 0.2, 32: 0.1}, "leaf": {40: 0.45, 90: 0.35, 256: 0.2}}
    tile = np.zeros((256, 256), np.float32)
    for cells, weight in octaves[kind].items():
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        tile += weight * (np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1)
    return tile


def noise(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The tile, repeated over the plane, at coordinates counted in its cells."""
    return noise_tile(kind)[np.floor(b).astype(np.int32) & 255, np.floor(a).astype(np.int32) & 255]


def wave(x: np.ndarray, period: float) -> np.ndarray:
    """The fraction of the period that has passed, 0..1."""
    return x / period - np.floor(x / period)


def plain(rng: Rng, colour: Colour, strength: float = 0.12) -> Pattern:
    """Paint or plaster: blotches and grain."""
    shift = rng.uniform(0, 256)
    return lambda a, b: (
        (1 + strength * noise("cloud", a * 9 + shift, b * 9) + strength / 2 * noise("grain", a * 25, b * 25 + shift))[
            ..., None
        ]
        * colour
    )


def asphalt(rng: Rng, colour: Colour) -> Pattern:
    shift = rng.uniform(0, 256)
    return lambda a, b: (
        (1 + 0.16 * noise("cloud", a * 6 + shift, b * 3) + 0.13 * noise("grain", a * 16, b * 9 + shift))[..., None]
        * colour
    )


def slabs(rng: Rng, colour: Colour) -> Pattern:
    """Paving stones laid like a chessboard, with joints, each of its own brightness."""
    wide, deep, shift, dark = rng.uniform(0.5, 0.8), rng.uniform(0.7, 1.1), rng.integers(0, 256), rng.uniform(0.7, 0.82)

    def pattern(a, b):
        stones = 1 + 0.16 * noise("grain", a / wide + shift, b / deep) + 0.06 * noise("grain", a * 30, b * 30)
        dim = np.where((np.floor(a / wide) + np.floor(b / deep)) % 2 > 0, dark, 1.0)
        joints = (wave(a, wide) < 0.1) | (wave(b, deep) < 0.1)
        return (stones * np.where(joints, 0.55, dim))[..., None] * colour

    return pattern


def grass(rng: Rng, colour: Colour) -> Pattern:
    """Meadow: streaks along the view and bare patches of another colour."""
    shift, bare = rng.uniform(0, 256), colour * rng.uniform(0.75, 1.3, 3)

    def pattern(a, b):
        patches = (noise("cloud", a * 10 + shift, b * 6) > 0.1)[..., None]
        shade = 1 + 0.4 * noise("grain", a * 9, b * 2.2 + shift) + 0.15 * noise("leaf", a * 20, b * 9)
        return shade[..., None] * np.where(patches, bare, colour)

    return pattern


def leaves(rng: Rng, colour: Colour) -> Pattern:
    """Clumps of light and dark leaves."""
    shift, scale = rng.uniform(0, 256), rng.uniform(9, 16)

    def pattern(a, b):
        clumps = noise("leaf", a * scale + shift, b * scale)
        return (1 + 0.75 * clumps + 0.3 * (clumps > 0.12) - 0.3 * (clumps < -0.2))[..., None] * colour

    return pattern


def bricks(rng: Rng, colour: Colour) -> Pattern:
    """Masonry: rows of stones, every other one shifted by half a stone, with lighter or darker joints."""
    long, high, shift = rng.uniform(0.9, 1.5), rng.uniform(0.38, 0.55), rng.integers(0, 256)
    joint = rng.choice([0.5, 1.45, 1.6])

    def pattern(a, b):
        row = np.floor(b / high)
        shifted = a + row % 2 * long / 2
        stones = 1 + 0.25 * noise("grain", shifted / long + shift, row) + 0.07 * noise("grain", a * 30, b * 30)
        joints = (wave(b, high) < 0.2) | (wave(shifted, long) < 0.09)
        return (stones * np.where(joints, joint, 1.0))[..., None] * colour

    return pattern


def windows(rng: Rng, colour: Colour, height: float) -> Pattern:
    """A house front: storeys of windows that are dark, sky-lit or lit from inside, and shops at the street."""
    storey, bay, shift = rng.uniform(2.3, 2.9), rng.uniform(1.5, 2.4), rng.integers(0, 256)
    glass, frame, shop = grey(rng, 30, 110, 20), colour * rng.choice([0.65, 1.35]), paint(rng)
    from_left, from_below = rng.uniform(0.18, 0.3), rng.uniform(0.2, 0.3)
    plaster = plain(rng, colour, 0.15)

    def pattern(a, b):
        across, up = wave(a, bay), wave(b, storey)
        upstairs = (b > storey) & (b < height - 0.5)
        inside = (across > from_left) & (across < 1 - from_left) & (up > from_below) & (up < 0.82) & upstairs
        around = (across > from_left - 0.07) & (across < 1.07 - from_left) & (up > from_below - 0.06) & (up < 0.88)
        shop_glass = (b > 0.5) & (b < storey - 0.9) & (wave(a, bay * 2) > 0.12)
        panes = (1 + 0.6 * noise("grain", a / bay + shift, b / storey))[..., None] * glass
        colours = np.where((around & upstairs)[..., None], frame, plaster(a, b))
        colours = np.where(((b < storey - 0.2) & (b > storey - 0.8))[..., None], shop, colours)
        return np.where((inside | shop_glass)[..., None], panes, colours)

    return pattern


def cylinder(colour: Colour, radius: float, band: Colour | None = None) -> Pattern:
    """Light on a round upright tube, bright left of the middle and dark at the edges; with bands of another colour."""

    def pattern(a, b):
        light = (1.25 - 0.75 * (a / radius + 0.25) ** 2 + 0 * b)[..., None]
        return light * (colour if band is None else np.where((wave(b, 0.7) < 0.5)[..., None], colour, band))

    return pattern


# ---- the street ------------------------------------------------------------------------------------------------------


class Street(NamedTuple):
    """Where the strips of the ground meet, as x in metres; the camera drives at x = 0."""

    left: float  # edge of the road
    right: float
    left_verge: float  # width of what lies between road and sidewalk: nothing, grass or parking
    right_verge: float
    left_walk: float  # outer edge of the sidewalk
    right_walk: float


def draw_scene(size: tuple[int, int], rng: Rng, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One street scene: picture [H, W, 3] uint8 RGB and label ids [H, W] uint8.

    `index` deals the rarer classes out in turn, so that a handful of pictures already holds all of them.
    """
    canvas = Canvas(size, rng)
    verges = rng.permutation([rng.uniform(2.0, 3.2), rng.choice([0.0, 1.8, 2.4])])
    left, right = -rng.uniform(3.2, 5.5), rng.uniform(2.2, 3.2)
    walk_left, walk_right = left - verges[0] - rng.uniform(3, 4.5), right + verges[1] + rng.uniform(3, 4.5)
    street = Street(left, right, *verges, walk_left, walk_right)

    draw_sky(canvas, rng)
    draw_ground(canvas, rng, street)
    draw_far_end(canvas, rng)
    if rng.random() < 0.15:
        draw_bridge(canvas, rng)
    draw_side(canvas, rng, street.left_walk, -1)
    draw_side(canvas, rng, street.right_walk, 1)
    things = [*vehicles(rng, street, index), *on_the_walks(rng, street, index), *two_wheelers(rng, street, index)]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):  # far to near
        draw(canvas)
    draw_own_car(canvas, rng)
    return expose(canvas, rng), np.array(canvas.labels)


def draw_sky(canvas: Canvas, rng: Rng) -> None:
    """Gradient and clouds, anything between blue, white, grey and evening."""
    zenith = [(105, 155, 215), (165, 175, 190), (210, 213, 218), (180, 170, 185), (130, 170, 210)][rng.integers(5)]
    zenith = np.array(zenith) + rng.uniform(-20, 20, 3)
    low, clouds = zenith * 0.4 + grey(rng, 130, 150, 15), grey(rng, 200, 250, 6)
    v = np.linspace(0, 1, canvas.height, dtype=np.float32)[:, None, None]
    u = np.linspace(0, 1, canvas.width, dtype=np.float32)[None, :, None]
    shift = rng.uniform(0, 256, 2)
    cover = (noise("cloud", u[..., 0] * 90 + shift[0], v[..., 0] * 130 + shift[1]) * 2 + rng.uniform(-0.5, 0.4))[
        ..., None
    ]
    colours = zenith + (low - zenith) * np.minimum(1, v * 2.2)
    colours = colours + (clouds - colours) * cover.clip(0, 0.8)
    canvas.picture.paste(Image.fromarray(colours.clip(0, 255).astype(np.uint8)))
    canvas.labels.paste(LABEL["sky"], (0, 0, canvas.width, canvas.height))


def draw_ground(canvas: Canvas, rng: Rng, street: Street) -> None:
    """Meadow or bare soil to the horizon, on it sidewalks, verges and the road with its markings and shadows."""
    near, far = 3.0, 400.0

    def strip(x0, x1, label, pattern):
        canvas.rectangle(GROUND, x0, x1, near, far, np.zeros(3), label, pattern)

    meadow = np.array([140, 150, 75]) * rng.uniform(0.75, 1.15) + rng.uniform(-22, 22, 3)
    strip(-400, 400, "terrain", grass(rng, meadow))
    walk = grey(rng, 125, 195, 8) + np.array([12, 2, -12])
    strip(street.left_walk, street.left, "sidewalk", slabs(rng, walk))
    strip(street.right, street.right_walk, "sidewalk", slabs(rng, walk))
    for edge, width in ((street.left, -street.left_verge), (street.right, street.right_verge)):
        if abs(width) >= 2:
            strip(edge, edge + width, "terrain", grass(rng, meadow))
        elif width:
            strip(edge, edge + width, "parking", bricks(rng, grey(rng, 80, 140, 10)))
    strip(street.left, street.right, "road", asphalt(rng, grey(rng, 60, 125, 8)))
    for edge, width in ((street.left, 0.25), (street.right, -0.25)):  # kerb stones
        strip(edge - width, edge, "sidewalk", plain(rng, walk * 1.15))
    draw_markings(canvas, rng, street)
    for _ in range(rng.integers(0, 4)):  # shadows of what stands beside the road
        z, x, length = rng.uniform(6, 30), rng.uniform(street.left_walk, street.right_walk), rng.uniform(1, 5)
        outline = [(x - 4, z), (x + 4, z + 1), (x + 4, z + 1 + length), (x - 4, z + length)]
        darken(canvas, outline, rng.uniform(0.5, 0.8))


def draw_markings(canvas: Canvas, rng: Rng, street: Street) -> None:
    white, middle = grey(rng, 170, 235, 10), (street.left + street.right) / 2 + rng.uniform(-0.4, 0.4)
    gap, start = rng.uniform(2, 5), rng.uniform(3, 6)
    for i in range(14):
        z = start + i * (3 + gap)
        canvas.rectangle(GROUND, middle - 0.09, middle + 0.09, z, z + 3, white)
    if rng.random() < 0.5:
        canvas.rectangle(GROUND, street.left + 0.4, street.left + 0.55, 3, 90, white)
        canvas.rectangle(GROUND, street.right - 0.55, street.right - 0.4, 3, 90, white)
    if rng.random() < 0.4:  # a crossing
        z, x = rng.uniform(8, 16), street.left + 0.3
        while x < street.right - 0.5:
            canvas.rectangle(GROUND, x, x + 0.5, z, z + 3, white)
            x += 1.0


def darken(canvas: Canvas, outline, factor: float) -> None:
    """A shadow on the ground; labels stay."""
    mask = Image.new("L", canvas.picture.size)
    pixels = [canvas.project(*GROUND.point(a, b)) for a, b in outline]
    ImageDraw.Draw(mask).polygon(pixels, fill=int(255 * (1 - factor)))
    canvas.picture.paste((12, 14, 22), (0, 0), mask)


def draw_far_end(canvas: Canvas, rng: Rng) -> None:
    """What closes the view at the end of the street: houses and trees in front of the sky."""
    x = -90.0
    while x < 90:
        width = rng.uniform(8, 25)
        plane = Upright(x, 80.0)
        if rng.random() < 0.5:
            height = rng.uniform(8, 16)
            canvas.rectangle(plane, 0, width, 0, height, np.zeros(3), "building", windows(rng, house(rng), height))
        else:
            draw_bush(canvas, rng, x + width / 2, 80.0, width, rng.uniform(6, 14), 0.0)
        x += width * rng.uniform(0.8, 1.1)


def draw_bridge(canvas: Canvas, rng: Rng) -> None:
    """A deck across the street, far away: an ignored class."""
    plane, colour, low = Upright(-60.0, 60.0), grey(rng, 90, 160, 10), rng.uniform(5, 7)
    canvas.rectangle(plane, 0, 120, low, low + rng.uniform(1.5, 2.5), colour, "bridge", plain(rng, colour))


def house(rng: Rng) -> Colour:
    """Plaster and concrete, from cream to grey, pinkish and bluish."""
    kinds = [(200, 185, 155), (150, 145, 140), (185, 140, 125), (130, 140, 155), (190, 175, 110), (105, 100, 98)]
    return np.array(kinds[rng.integers(len(kinds))]) * rng.uniform(0.8, 1.15) + rng.uniform(-15, 15, 3)


def masonry(rng: Rng) -> Colour:
    """Brick, sandstone and granite."""
    kinds = [(165, 85, 65), (185, 125, 80), (130, 80, 75), (120, 112, 110)]
    return np.array(kinds[rng.integers(len(kinds))]) * rng.uniform(0.8, 1.15) + rng.uniform(-12, 12, 3)


def green(rng: Rng) -> Colour:
    """Leaves from dark green to the yellow and brown of autumn."""
    kinds = [(60, 95, 40), (45, 80, 45), (85, 110, 45), (110, 95, 45), (70, 100, 65)]
    return np.array(kinds[rng.integers(len(kinds))]) * rng.uniform(0.75, 1.2) + rng.uniform(-8, 8, 3)


def draw_side(canvas: Canvas, rng: Rng, edge: float, sign: int) -> None:
    """The row of houses, walls, fences, hedges and gaps along the outer edge of a sidewalk, far to near."""
    segments, z = [], rng.uniform(4, 7)
    while z < 75:
        length = rng.uniform(8, 14) if z < 30 else rng.uniform(18, 30)
        segments.append((z, length))
        z += length
    kinds = ("house", "wall", "fence", "hedge", "open")
    chosen = rng.choice(kinds, len(segments), p=[0.32, 0.25, 0.29, 0.07, 0.07])
    for (z, length), kind in reversed(list(zip(segments, chosen, strict=True))):
        setback = {"house": 0.0, "open": 0.0}.get(kind, rng.uniform(0.1, 1.5))
        x = edge + sign * setback
        plane = Upright(x, z, 0.0, 1.0)
        if kind == "house":
            draw_house(canvas, rng, plane, length, sign)
            continue
        if rng.random() < 0.5:
            draw_house(canvas, rng, Upright(edge + sign * rng.uniform(5, 9), z, 0.0, 1.0), length, sign)
        for _ in range(rng.integers(1, 3)):
            draw_tree(canvas, rng, edge + sign * rng.uniform(2.5, 5), z + rng.uniform(0.3, 1) * length)
        if kind == "wall":
            draw_wall(canvas, rng, plane, length)
        elif kind == "fence":
            draw_fence(canvas, rng, plane, length)
        elif kind == "hedge":
            for i in range(5, -1, -1):
                draw_bush(canvas, rng, x + sign, z + length * i / 5, 2.6, rng.uniform(1.2, 2.2), 0.0)


def draw_house(canvas: Canvas, rng: Rng, front: Upright, length: float, sign: int) -> None:
    """The front along the street and the gable that faces the camera."""
    height, colour = rng.uniform(6, 14), house(rng)
    gable = Upright(front.x, front.z, float(sign), 0.0)
    shade, look = rng.uniform(0.65, 1.1), windows(rng, colour, height)
    canvas.rectangle(gable, 0, 12, 0, height, colour, "building", lambda a, b: look(a, b) * shade)
    canvas.rectangle(front, 0, length, 0, height, colour, "building", look)
    canvas.rectangle(front, 0, length, height - 0.5, height, colour * 0.6)


def draw_wall(canvas: Canvas, rng: Rng, plane: Upright, length: float) -> None:
    height, colour = rng.uniform(2.3, 3.6), masonry(rng)
    canvas.rectangle(plane, 0, length, 0, height, colour, "wall", bricks(rng, colour))
    canvas.rectangle(plane, 0, length, height - 0.3, height, colour * rng.choice([0.6, 1.3]))


def draw_fence(canvas: Canvas, rng: Rng, plane: Upright, length: float) -> None:
    """Light pickets between two rails, or crossed laths, before dark undergrowth."""
    height, period, crossed = rng.uniform(1.9, 2.8), rng.uniform(0.38, 0.55), rng.random() < 0.35
    kinds = [grey(rng, 190, 235, 12), np.array([165, 120, 75]), np.array([120, 165, 130]), grey(rng, 130, 180, 12)]
    colour, dark = kinds[rng.integers(4)] * rng.uniform(0.85, 1.15), grey(rng, 20, 60, 12)

    def pattern(a, b):
        if crossed:
            lath = (wave(a + b, period * 1.8) < 0.38) | (wave(a - b, period * 1.8) < 0.38)
        else:
            lath = (wave(a, period) < 0.5) & (b > -1)
        lath = lath | (abs(b - height + 0.3) < 0.13) | (abs(b - 0.4) < 0.13)
        return np.where(lath[..., None], colour, dark * (1 + 0.4 * noise("grain", a * 12, b * 12)[..., None]))

    canvas.rectangle(plane, 0, length, 0, height, colour, "fence", pattern)


def draw_bush(canvas: Canvas, rng: Rng, x: float, z: float, width: float, height: float, base: float) -> None:
    """A ragged ball of leaves."""
    plane, colour = Upright(x, z), green(rng)
    reach = rng.uniform(0.8, 1.15, 20)
    outline = [
        (width / 2 * c * r, max(base, base + height / 2 + height / 2 * s * r))
        for (c, s), r in zip(circle(20), reach, strict=True)
    ]
    canvas.shape(plane, outline, colour, "vegetation", leaves(rng, colour))


def draw_tree(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    crown, width, trunk = rng.uniform(1.6, 2.6), rng.uniform(4, 6), grey(rng, 50, 90, 15)
    canvas.rectangle(Upright(x, z), -0.2, 0.2, 0, crown + 1, trunk, "vegetation", cylinder(trunk, 0.2))
    draw_bush(canvas, rng, x - width / 4, z, width * 0.8, rng.uniform(3, 5), crown)
    draw_bush(canvas, rng, x + width / 4, z, width * 0.8, rng.uniform(3, 5), crown + rng.uniform(-0.5, 1))


def draw_own_car(canvas: Canvas, rng: Rng) -> None:
    """The bonnet at the bottom and the dark rim left by rectification, both void."""
    height, width = canvas.height, canvas.width
    rise, colour, rim = rng.uniform(0.03, 0.08) * height, to_pixel(grey(rng, 15, 60, 8)), max(1, height // 128)
    box = (-0.1 * width, height - rise, 1.1 * width, height + 3 * rise)
    frame = (0, 0, width - 1, height - 1)
    for brush, bonnet, border in (
        (canvas.brush, colour, (0, 0, 0)),
        (canvas.label_brush, LABEL["ego vehicle"], LABEL["out of roi"]),
    ):
        brush.ellipse([int(edge) for edge in box], fill=bonnet)
        brush.rectangle(frame, outline=border, width=rim)


# ---- things in the street --------------------------------------------------------------------------------------------
# Each list below holds (depth, draw) pairs; a thing draws itself when its turn comes.

Thing = tuple[float, Callable[[Canvas], None]]


def on_the_walks(rng: Rng, street: Street, index: int) -> Iterator[Thing]:
    """Persons, poles with lights or signs, bins and boxes."""

    def spot(nearest: float, farthest: float) -> tuple[float, float]:
        z = rng.uniform(nearest, farthest)
        edges = (street.left_walk, street.left) if rng.random() < 0.5 else (street.right, street.right_walk)
        return rng.uniform(edges[0] + 0.3, edges[1] - 0.3), z

    for _ in range(rng.integers(3, 6)):
        x, z = spot(7, 13)
        yield z, lambda canvas, x=x, z=z: draw_person(canvas, rng, x, z)
    if rng.random() < 0.6:  # someone crosses
        x, z = rng.uniform(street.left, street.right), rng.uniform(8, 13)
        yield z, lambda canvas, x=x, z=z: draw_person(canvas, rng, x, z)
    for i in range(rng.integers(4, 7)):
        x, z = spot(8, 17)
        head = ("light", "sign")[(index + i) % 2] if rng.random() < 0.85 else ""
        yield z, lambda canvas, x=x, z=z, head=head: draw_pole(canvas, rng, x, z, head)
    if rng.random() < 0.4:
        x, z = spot(8, 20)
        yield z, lambda canvas, x=x, z=z: draw_bin(canvas, rng, x, z)
    for kind in ("wall", "fence"):  # across the walk, as round a building site
        if rng.random() < 0.3:
            x, z = spot(10, 22)
            draw = draw_wall if kind == "wall" else draw_fence
            yield z, lambda canvas, x=x, z=z, draw=draw: draw(canvas, rng, Upright(x - 1.5, z), rng.uniform(3, 5))


def draw_person(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    plane, h = Upright(x, z), rng.uniform(1.7, 2.05)
    coat, trousers, skin = paint(rng), grey(rng, 25, 75, 15), np.array([205, 160, 130]) * rng.uniform(0.6, 1.1)
    stride, hem, lean = rng.uniform(0.02, 0.28), rng.uniform(0.36, 0.5) * h, rng.uniform(-0.06, 0.06)
    darken(canvas, [(x + 0.5 * c, z + 0.5 * s) for c, s in circle(12)], 0.6)
    for foot in (-stride, stride):
        canvas.bar(plane, (lean + foot * 0.35, 0.5 * h), (foot, 0.02), 0.24, trousers, "person")
        canvas.rectangle(plane, foot - 0.12, foot + 0.14, 0, 0.09, trousers * 0.4, "person")
    for side in (-1, 1):
        hand = (lean + side * rng.uniform(0.26, 0.42), rng.uniform(0.4, 0.5) * h)
        canvas.bar(plane, (lean + side * 0.24, 0.8 * h), hand, 0.17, coat * 0.8, "person")
        canvas.disc(plane, *hand, 0.07, skin, "person", corners=8)
    body = [(-0.26, hem), (0.26, hem), (0.31 + lean, 0.8 * h), (0.12 + lean, 0.85 * h), (lean - 0.12, 0.85 * h)]
    stripes = coat * rng.choice([0.5, 1.5])
    canvas.shape(
        plane, [*body, (lean - 0.31, 0.8 * h)], coat, "person",
        lambda a, b: np.where((wave(a, 0.18) < 0.4)[..., None], stripes, coat) + 0 * b[..., None],
    )  # fmt: skip
    draw_head(canvas, plane, lean, 0.92 * h, skin, grey(rng, 20, 140, 20), "person")


def draw_head(canvas: Canvas, plane: Upright, a: float, b: float, skin: Colour, hair: Colour, label: str) -> None:
    canvas.disc(plane, a, b + 0.02, 0.155, hair, label, corners=14)
    canvas.disc(plane, a, b - 0.03, 0.11, skin, corners=12)


def draw_pole(canvas: Canvas, rng: Rng, x: float, z: float, head: str) -> None:
    """A stout round pole that carries a traffic light, a sign or a lamp."""
    plane, radius, height = Upright(x, z), rng.uniform(0.22, 0.3), rng.uniform(3.0, 4.4)
    colour = grey(rng, 135, 205, 8)
    dim = rng.uniform(0.4, 0.6)  # painted bands
    if not head:
        height = rng.uniform(5, 9)
        canvas.bar(plane, (0, height), (1.2 if x < 0 else -1.2, height + 0.3), 0.18, colour, "pole")
        if rng.random() < 0.3:  # two poles side by side: an ignored class
            twin = Upright(x + 0.6, z)
            canvas.rectangle(twin, -radius, radius, 0, height, colour, "polegroup", cylinder(colour, radius))
    canvas.rectangle(plane, -radius, radius, 0, height, colour, "pole", cylinder(colour, radius, colour * dim))
    canvas.rectangle(plane, -radius - 0.06, radius + 0.06, 0, 0.3, colour * 0.7, "pole")
    if head == "light":
        draw_traffic_light(canvas, rng, plane, height)
    elif head == "sign":
        draw_sign(canvas, rng, plane, height - 0.4)


def draw_traffic_light(canvas: Canvas, rng: Rng, plane: Upright, top: float) -> None:
    """Three lamps above each other in a dark box with a light rim, one of them lit."""
    tall, wide = rng.uniform(2.0, 2.4), rng.uniform(0.42, 0.5)
    box = [grey(rng, 15, 45, 6), np.array([30, 60, 45])][rng.integers(2)]
    rim = [grey(rng, 200, 240, 8), np.array([225, 190, 60])][rng.integers(2)]
    canvas.rectangle(plane, -wide - 0.12, wide + 0.12, top - tall - 0.12, top + 0.12, rim, "traffic light")
    canvas.rectangle(plane, -wide, wide, top - tall, top, box)
    lit = rng.integers(3)
    for i, lamp in enumerate(((235, 60, 40), (245, 190, 60), (70, 225, 120))):
        colour = np.array(lamp) * (1.0 if i == lit else 0.35)
        canvas.disc(plane, 0, top - tall * (2 * i + 1) / 6, 0.31, colour, corners=14)


def draw_sign(canvas: Canvas, rng: Rng, plane: Upright, height: float) -> None:
    """A round, triangular, square or eight-sided plate with a rim and something on it."""
    rim, field = [
        ((200, 35, 40), (235, 230, 225)), ((40, 80, 165), (225, 228, 235)), ((225, 228, 235), (40, 85, 170)),
        ((210, 40, 40), (190, 35, 40)), ((25, 25, 25), (235, 195, 50)), ((235, 235, 235), (35, 110, 75)),
    ][rng.integers(6)]  # fmt: skip
    rim, field = np.array(rim) * rng.uniform(0.8, 1.05), np.array(field) * rng.uniform(0.8, 1.05)
    radius, kind = rng.uniform(0.7, 0.95), rng.integers(4)
    if kind == 0:
        corners = [(c, s) for c, s in circle(20)]
    elif kind == 1:
        corners = [(-1, -0.75), (1, -0.75), (0, 1)]
    elif kind == 2:
        corners = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    else:
        corners = [(c, s) for c, s in circle(8)]
    canvas.shape(plane, [(radius * a, height + radius * b) for a, b in corners], rim, "traffic sign")
    canvas.shape(plane, [(0.74 * radius * a, height + 0.74 * radius * b) for a, b in corners], field)
    mark = [grey(rng, 15, 60, 5), grey(rng, 220, 245, 5)][int(field.sum() < 400)]
    if rng.random() < 0.5:
        canvas.rectangle(plane, -0.45 * radius, 0.45 * radius, height - 0.13 * radius, height + 0.13 * radius, mark)
    else:
        canvas.bar(plane, (-0.2 * radius, height - 0.4 * radius), (0.2 * radius, height + 0.3 * radius), 0.2, mark)


def draw_bin(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    plane, colour, wide, tall = Upright(x, z), paint(rng), rng.uniform(0.35, 0.9), rng.uniform(0.7, 1.4)
    canvas.rectangle(plane, -wide, wide, 0, tall, colour, "static", plain(rng, colour))
    canvas.rectangle(plane, -wide - 0.05, wide + 0.05, tall - 0.15, tall, colour * 0.6, "static")


def two_wheelers(rng: Rng, street: Street, index: int) -> Iterator[Thing]:
    """One ridden bicycle or motorcycle in the road, another of the other kind, sometimes one parked on the walk."""
    kinds = ("bicycle", "motorcycle") if index % 2 else ("motorcycle", "bicycle")
    for kind, chance, ridden in ((kinds[0], 1.0, 0.9), (kinds[1], 0.75, 0.8), (kinds[rng.integers(2)], 0.4, 0.0)):
        if rng.random() > chance:
            continue
        has_rider = rng.random() < ridden
        if has_rider:
            x = rng.uniform(street.left + 0.5, street.right - 0.3)
        else:
            x = rng.choice([rng.uniform(street.left_walk, street.left), rng.uniform(street.right, street.right_walk)])
        z, turn = rng.uniform(6.5, 11), rng.uniform(-0.6, 0.6)
        forward = rng.choice([-1.0, 1.0])
        plane = Upright(x, z, forward * round(cos(turn), 6), round(sin(turn), 6))
        yield (
            z,
            lambda canvas, plane=plane, kind=kind, rider=has_rider: draw_two_wheeler(canvas, rng, plane, kind, rider),
        )


def draw_two_wheeler(canvas: Canvas, rng: Rng, plane: Upright, kind: str, has_rider: bool) -> None:
    darken(canvas, [(plane.x + 1.0 * c, plane.z + 0.35 * s) for c, s in circle(12)], 0.6)
    if kind == "bicycle":
        draw_bicycle(canvas, rng, plane)
    else:
        draw_motorcycle(canvas, rng, plane)
    if has_rider:
        draw_rider(canvas, rng, plane, kind)


def draw_bicycle(canvas: Canvas, rng: Rng, plane: Upright) -> None:
    """Two spoked wheels and a frame of tubes; the label covers the wheels' insides and the frame's."""
    colour, tyre, radius = paint(rng), grey(rng, 15, 60, 5), rng.uniform(0.38, 0.43)
    crank, saddle, steer = (-0.02, 0.4), (-0.2, 0.95), (0.45, 0.95)
    for hub in (-0.58, 0.58):

        def holes(a, b, hub=hub):
            x, y = a - hub, b - radius
            square = x * x + y * y
            spokes = (abs(x) < 0.02) | (abs(y) < 0.02) | (abs(x + y) < 0.028) | (abs(x - y) < 0.028)
            return (square < (0.8 * radius) ** 2) & (square > 0.006) & ~spokes

        canvas.disc(plane, hub, radius, radius, tyre, "bicycle", holes=holes)
    hull = [(-0.58, radius), crank, (0.58, radius), steer, saddle]
    canvas.shape(plane, hull, None, "bicycle")
    rear, front = (-0.58, radius), (0.58, radius)
    tubes = (
        (rear, crank),
        (crank, saddle),
        (rear, saddle),
        (crank, (0.42, 0.85)),
        (saddle, (0.42, 0.85)),
        (front, steer),
    )
    for start, end in tubes:
        canvas.bar(plane, start, end, 0.085, colour, "bicycle")
    canvas.rectangle(plane, -0.36, -0.06, 0.93, 1.03, tyre, "bicycle")
    canvas.bar(plane, (0.3, 1.08), (0.52, 1.0), 0.09, tyre, "bicycle")


def draw_motorcycle(canvas: Canvas, rng: Rng, plane: Upright) -> None:
    """A solid body between thick wheels."""
    colour, tyre, metal = paint(rng), grey(rng, 12, 45, 4), grey(rng, 120, 190, 8)
    for hub in (-0.72, 0.72):
        canvas.disc(plane, hub, 0.36, 0.36, tyre, "motorcycle")
        canvas.disc(plane, hub, 0.36, 0.17, metal, corners=12)
    engine = [(-0.5, 0.25), (0.35, 0.22), (0.45, 0.6), (-0.45, 0.65)]
    canvas.shape(plane, engine, metal * 0.5, "motorcycle", bricks(rng, metal * 0.55))
    canvas.bar(plane, (0.72, 0.36), (0.42, 1.05), 0.12, metal, "motorcycle")
    body = [(-1.0, 0.75), (-0.95, 0.95), (-0.3, 0.82), (0.0, 1.05), (0.45, 1.0), (0.62, 0.7), (0.3, 0.55), (-0.4, 0.58)]
    canvas.shape(plane, body, colour, "motorcycle", plain(rng, colour))
    canvas.shape(plane, [(-0.85, 0.86), (-0.8, 0.97), (-0.15, 0.94), (-0.15, 0.82)], tyre, "motorcycle")
    canvas.bar(plane, (-0.1, 0.3), (-1.0, 0.38), 0.13, metal, "motorcycle")
    canvas.shape(plane, [(0.4, 0.95), (0.62, 0.95), (0.5, 1.32), (0.4, 1.28)], colour * 0.7, "motorcycle")
    canvas.disc(plane, 0.62, 0.92, 0.13, np.array([245, 240, 205]), "motorcycle", corners=10)


def hi_vis(rng: Rng) -> Colour:
    """Jackets to be seen in: orange, yellow-green, red; or any colour."""
    kinds = [np.array([235, 120, 40]), np.array([200, 225, 60]), np.array([205, 55, 60]), paint(rng)]
    return kinds[rng.integers(4)] * rng.uniform(0.8, 1.05)


def draw_rider(canvas: Canvas, rng: Rng, plane: Upright, kind: str) -> None:
    """Hips on the saddle, bent forward to the handlebar, with a helmet."""
    jacket, trousers, helmet, band = hi_vis(rng), paint(rng) * 0.5, rng.uniform(90, 250, 3), grey(rng, 215, 245, 8)
    lift = 0.1 if kind == "bicycle" else 0.0
    hips, shoulders = (-0.25, 0.98 + lift), (0.18, 1.55 + lift)
    knee = (0.2, 0.72 + lift)
    foot = (0.02, 0.25) if kind == "bicycle" else (-0.05, 0.3)
    canvas.bar(plane, hips, knee, 0.25, trousers, "rider")
    canvas.bar(plane, knee, foot, 0.19, trousers, "rider")
    canvas.rectangle(plane, foot[0] - 0.1, foot[0] + 0.2, foot[1] - 0.06, foot[1] + 0.06, trousers * 0.4, "rider")
    back = [(-0.47, 0.95 + lift), (-0.08, 0.92 + lift), (0.35, 1.5 + lift), (0.18, 1.72 + lift), (-0.12, 1.6 + lift)]
    canvas.shape(
        plane,
        back,
        jacket,
        "rider",
        lambda a, b: np.where((wave(b, 0.3) < 0.4)[..., None], band, jacket) + 0 * a[..., None],
    )
    canvas.bar(plane, shoulders, (0.3, 1.2 + lift), 0.15, jacket * 0.8, "rider")
    canvas.bar(plane, (0.3, 1.2 + lift), (0.5, 1.1 + lift), 0.13, jacket * 0.8, "rider")
    canvas.disc(plane, 0.24, 1.84 + lift, 0.2, helmet, "rider", corners=14)
    visor = [(0.3, 1.72 + lift), (0.45, 1.76 + lift), (0.44, 1.9 + lift), (0.28, 1.9 + lift)]
    canvas.shape(plane, visor, np.array([190, 150, 125]) if kind == "bicycle" else grey(rng, 15, 50, 5), "rider")


# ---- vehicles --------------------------------------------------------------------------------------------------------


class Body:
    """A box on wheels with its centre at (x, z): the planes of the long side and of the end that the camera sees.

    `side` counts from the rear (0) to the front (length), `end` from the left (0) to the right (width) as one drives.
    """

    def __init__(self, x: float, z: float, turn: float, length: float, width: float):
        dx, dz = round(sin(turn), 6), round(cos(turn), 6)  # the way it drives; turn 0 is away from the camera
        self.length, self.width = length, width
        self.rear, self.along = (x - dx * length / 2 - dz * width / 2, z - dz * length / 2 + dx * width / 2), (dx, dz)
        right_seen = x * dz - z * dx < 0
        self.side = Upright(*self.corner(0, width if right_seen else 0), dx, dz)
        self.rear_seen = x * dx + z * dz > 0
        self.end = Upright(*self.corner(0 if self.rear_seen else length, 0), dz, -dx)
        self.footprint = [self.corner(*at) for at in ((0, 0), (length, 0), (length, width), (0, width))]
        self.depth = min(depth for _, depth in self.footprint)

    def corner(self, a: float, across: float) -> tuple[float, float]:
        """(x, z) of a metres from the rear and `across` metres from the left side."""
        (x, z), (dx, dz) = self.rear, self.along
        return x + dx * a + dz * across, z + dz * a - dx * across

    def facet(self, canvas: "Canvas", corners, colour: Colour, label: str | None = None) -> None:
        """Paint a polygon of points (a, across, height)."""
        points = [(*self.corner(a, across), height) for a, across, height in corners]
        canvas.facet([(x, height, z) for x, z, height in points], colour, label)


def vehicles(rng: Rng, street: Street, index: int) -> Iterator[Thing]:
    """One or two large vehicles, dealt out in turn, and some cars, each in a place of its own."""
    large = ["truck", "bus", "train"]
    kinds = [large[index % 3]]
    if rng.random() < 0.55:
        kinds.append(large[(index + 1 + rng.integers(2)) % 3])
    kinds += ["car"] * rng.integers(2, 4)
    lane = street.left * 0.55
    places = [  # x, depth of the near end, turn
        (lane, rng.uniform(9, 16), pi), (rng.uniform(-0.2, 0.8), rng.uniform(12, 20), 0.0),
        (rng.uniform(-6, 6), rng.uniform(20, 30), rng.choice([-1, 1]) * pi / 2),
        (street.right - 0.9, rng.uniform(10, 20), 0.0), (lane, rng.uniform(26, 36), pi),
    ]  # fmt: skip
    order = [*rng.permutation(3), *(3 + rng.permutation(2))]
    for kind, place in zip(kinds, order, strict=False):
        x, near, turn = places[place]
        turn = turn + rng.uniform(-0.12, 0.12)
        length, width = {
            "car": (rng.uniform(3.9, 4.7), 1.85), "truck": (rng.uniform(7, 9.5), 2.5),
            "bus": (rng.uniform(9, 12), 2.6), "train": (rng.uniform(17, 25), 2.7),
        }[kind]  # fmt: skip
        reach = length / 2 if place != 2 else width / 2
        body = Body(x, near + reach, turn, length, width)
        draw = {"car": draw_car, "truck": draw_truck, "bus": draw_bus, "train": draw_tram}[kind]
        yield body.depth, lambda canvas, draw=draw, body=body: draw(canvas, rng, body)


def draw_wheels(canvas: Canvas, body: Body, places, radius: float, label: str) -> None:
    for a in places:
        canvas.disc(body.side, a, radius, radius, np.array([22.0, 22, 24]), label, corners=16)
        canvas.disc(body.side, a, radius, radius * 0.55, np.array([150.0, 150, 152]), corners=12)
    for a in (0.12, body.width - 0.37):
        canvas.rectangle(body.end, a, a + 0.25, 0, radius, np.array([22.0, 22, 24]), label)


def draw_lamps(canvas: Canvas, body: Body, low: float, high: float) -> None:
    colour = np.array([205.0, 35, 30]) if body.rear_seen else np.array([250.0, 248, 225])
    for a in (0.08, body.width - 0.4):
        canvas.rectangle(body.end, a, a + 0.32, low, high, colour)


def draw_car(canvas: Canvas, rng: Rng, body: Body) -> None:
    """Low body with a narrower glass house on it; saloon, estate or van."""
    colour, glass, length, width = paint(rng), grey(rng, 25, 90, 12), body.length, body.width
    roof, waist, dim = rng.uniform(1.42, 1.8), rng.uniform(0.88, 1.0), rng.uniform(0.7, 0.95)
    tail, front = rng.uniform(0.02, 0.16) * length, rng.uniform(0.6, 0.72) * length
    darken(canvas, body.footprint, 0.35)
    side = body.side
    low = [(0.05, 0.3), (length - 0.05, 0.3), (length, 0.68), (front + 0.7, waist), (tail, waist), (0, waist - 0.08)]
    canvas.shape(side, low, colour * dim, "car", plain(rng, colour * dim, 0.08))
    draw_wheels(canvas, body, (0.19 * length, 0.81 * length), 0.34, "car")
    canvas.rectangle(body.end, 0, width, 0.28, 0.72, colour, "car", plain(rng, colour, 0.08))

    def across_facet(start, stop, narrow, shade, label):
        """From one point (a, height) to another, over the width of the car less `narrow` at each of them."""
        (a0, b0), (a1, b1) = start, stop
        corners = [(a0, narrow[0], b0), (a0, width - narrow[0], b0), (a1, width - narrow[1], b1), (a1, narrow[1], b1)]
        body.facet(canvas, corners, shade, label)

    across_facet((0, 0.7), (tail, waist), (0, 0), colour, "car")
    across_facet((tail, waist), (front + 0.7, waist), (0, 0), colour, "car")
    across_facet((length, 0.7), (front + 0.7, waist), (0, 0), colour * 1.08, "car")
    slopes = [((tail, waist), (tail + 0.4, roof)), ((front + 0.7, waist), (front, roof))]
    for start, stop in slopes if not body.rear_seen else reversed(slopes):  # the one that is seen comes last
        across_facet(start, stop, (0.02, 0.2), colour, "car")
        across_facet(start, stop, (0.16, 0.32), glass, None)
    near, far = (0, 0.2) if side[:2] == body.corner(0, 0) else (width, width - 0.2)
    cabin = [(tail, near, waist), (front + 0.7, near, waist), (front, far, roof), (tail + 0.4, far, roof)]
    body.facet(canvas, cabin, colour * dim, "car")
    inner = [(tail + 0.3, waist), (front + 0.4, waist), (front - 0.05, roof - 0.12), (tail + 0.5, roof - 0.12)]
    body.facet(canvas, [(a, near if b == waist else (near + 9 * far) / 10, b) for a, b in inner], glass)
    middle = (tail + front) / 2 + 0.2
    body.facet(canvas, [(middle, near, waist), (middle + 0.12, near, waist), (middle, far, roof)], colour * dim)
    across_facet((tail + 0.4, roof), (front, roof), (0.2, 0.2), colour * 1.1, "car")
    canvas.rectangle(body.end, 0, width, 0.25, 0.4, grey(rng, 20, 50, 4), "car")
    canvas.rectangle(body.end, width / 2 - 0.3, width / 2 + 0.3, 0.44, 0.58, grey(rng, 215, 240, 5))
    draw_lamps(canvas, body, 0.5, 0.7)


def truck_paint(rng: Rng) -> Colour:
    """Containers in dull blue, green, rust and white."""
    kinds = [(85, 100, 130), (95, 120, 100), (145, 95, 75), (195, 190, 180)]
    return np.array(kinds[rng.integers(4)]) * rng.uniform(0.8, 1.1) + rng.uniform(-20, 20, 3)


def draw_truck(canvas: Canvas, rng: Rng, body: Body) -> None:
    """A tall ribbed box without windows behind a lower cab, on big wheels."""
    colour, cab, glass = truck_paint(rng), paint(rng), grey(rng, 25, 80, 10)
    length, width, top = body.length, body.width, rng.uniform(3.3, 3.9)
    gap, rib = length - 2.2, rng.uniform(0.5, 0.8)

    def ribs(shade: float) -> Pattern:
        return lambda a, b: (shade * np.where(wave(a, rib) < 0.4, 0.6, 1.0) + 0 * b)[..., None] * colour

    darken(canvas, body.footprint, 0.3)
    canvas.rectangle(body.side, 0.1, length - 0.2, 0.5, 0.95, grey(rng, 25, 50, 5), "truck")
    canvas.shape(
        body.side,
        [(gap + 0.25, 0.6), (length, 0.6), (length, 1.6), (length - 0.35, 2.7), (gap + 0.25, 2.7)],
        cab,
        "truck",
    )
    canvas.shape(body.side, [(gap + 0.8, 1.6), (length - 0.12, 1.6), (length - 0.4, 2.4), (gap + 0.8, 2.4)], glass)
    canvas.rectangle(body.side, 0, gap, 0.95, top, colour, "truck", ribs(rng.uniform(0.75, 1.0)))
    draw_wheels(canvas, body, (0.13 * length, 0.26 * length, length - 1.0), 0.52, "truck")
    if body.rear_seen:
        canvas.rectangle(body.end, 0.1, width - 0.1, 0.5, 0.95, grey(rng, 25, 50, 5), "truck")
        canvas.rectangle(body.end, 0, width, 0.95, top, colour, "truck", ribs(1.0))
        canvas.rectangle(body.end, width / 2 - 0.05, width / 2 + 0.05, 0.95, top, colour * 0.4)
        draw_lamps(canvas, body, 0.6, 0.85)
        return
    canvas.rectangle(body.end, 0, width, 2.6, top, colour * 0.85, "truck", ribs(0.85))
    canvas.rectangle(body.end, 0, width, 0.45, 2.75, cab, "truck", plain(rng, cab, 0.08))
    canvas.rectangle(body.end, 0.2, width - 0.2, 1.6, 2.4, glass)
    canvas.rectangle(body.end, 0.5, width - 0.5, 0.8, 1.4, cab * 0.45)
    draw_lamps(canvas, body, 0.6, 0.9)


def bus_paint(rng: Rng) -> Colour:
    """Red, orange, yellow and wine."""
    kinds = [(190, 50, 45), (225, 130, 40), (215, 180, 55), (150, 45, 75)]
    return np.array(kinds[rng.integers(4)]) * rng.uniform(0.8, 1.1) + rng.uniform(-20, 20, 3)


def draw_bus(canvas: Canvas, rng: Rng, body: Body) -> None:
    """One coloured box with a band of large windows, doors to the ground and a lit destination."""
    colour, skirt, glass = bus_paint(rng), paint(rng), grey(rng, 25, 85, 12)
    length, width, top, bay = body.length, body.width, rng.uniform(2.9, 3.3), rng.uniform(1.2, 1.6)
    shade = rng.uniform(0.75, 1.05)

    def panes(a, b):
        open_pane = (wave(a, bay) > 0.14) & (b > 1.3) & (b < top - 0.55) & (a > 0.2) & (a < length - 0.2)
        door = (wave(a, length / 2) * length / 2 > length / 2 - 1.3) & (b < top - 0.5) & (b > 0.4)
        body_colours = np.where((b < 0.8)[..., None], skirt, colour * shade)
        shine = (1 + 0.5 * noise("grain", a / bay, 0 * b))[..., None] * glass
        return np.where((open_pane | door & (abs(wave(a, 0.65) - 0.5) < 0.42))[..., None], shine, body_colours)

    darken(canvas, body.footprint, 0.3)
    canvas.rectangle(body.side, 0, length, 0.3, top, colour, "bus", panes)
    draw_wheels(canvas, body, (0.22 * length, 0.74 * length), 0.5, "bus")
    canvas.rectangle(body.end, 0, width, 0.3, top, colour, "bus", plain(rng, colour, 0.08))
    canvas.rectangle(body.end, 0.15, width - 0.15, 1.15, top - 0.55, glass)
    canvas.rectangle(body.end, 0.45, width - 0.45, top - 0.45, top - 0.12, np.array([35.0, 30, 25]))
    canvas.rectangle(body.end, 0.6, width - 0.6, top - 0.38, top - 0.19, np.array([250.0, 170, 50]))
    canvas.rectangle(body.end, 0, width, 0.3, 0.55, skirt)
    draw_lamps(canvas, body, 0.65, 0.95)


def tram_paint(rng: Rng) -> Colour:
    """Blue, sea green, green and violet."""
    kinds = [(55, 95, 175), (50, 150, 150), (70, 150, 90), (115, 80, 165)]
    return np.array(kinds[rng.integers(4)]) * rng.uniform(0.8, 1.1) + rng.uniform(-20, 20, 3)


def draw_tram(canvas: Canvas, rng: Rng, body: Body) -> None:
    """Long and low over rails: stripes along the whole train, one dark band of glass, a current collector on top."""
    colour, stripe, glass = tram_paint(rng), tram_paint(rng), grey(rng, 20, 60, 8)
    length, width, top = body.length, body.width, rng.uniform(3.3, 3.7)
    car_length, shade = rng.uniform(5.5, 7), rng.uniform(0.8, 1.05)
    light = np.array([232.0, 230, 222])

    def livery(a, b):
        band = ((b > 0.35) & (b < 0.6)) | ((b > 0.95) & (b < 1.2)) | ((b > top - 0.75) & (b < top - 0.5))
        colours = np.where(
            (band + 0 * a > 0.5)[..., None], light, np.where((b < 1.0)[..., None], stripe, colour * shade)
        )
        pane = (b > 1.4) & (b < top - 0.85)
        colours = np.where(
            (pane + 0 * a > 0.5)[..., None], np.where((wave(a, 2.2) < 0.06)[..., None], stripe, glass), colours
        )
        return np.where((wave(a, car_length) < 0.09)[..., None], colours * 0 + 38, colours)  # bellows between the cars

    draw_rails(canvas, rng, body)
    darken(canvas, body.footprint, 0.35)
    canvas.bar(body.side, (length * 0.42, top), (length * 0.46, top + 0.7), 0.14, glass, "train")
    canvas.bar(body.side, (length * 0.46, top + 0.7), (length * 0.41, top + 1.2), 0.14, glass, "train")
    canvas.rectangle(body.side, 0, length, 0.12, top, colour, "train", livery)
    nose = [(0, 0.12), (width, 0.12), (width, top - 0.6), (width - 0.4, top), (0.4, top), (0, top - 0.6)]
    canvas.shape(body.end, nose, colour, "train", lambda a, b: livery(a * 0 + 3, b))
    canvas.shape(body.end, [(0.25, 1.3), (width - 0.25, 1.3), (width - 0.5, top - 0.4), (0.5, top - 0.4)], glass)
    canvas.disc(body.end, width / 2, 0.8, 0.2, np.array([252.0, 248, 220]), corners=12)


def draw_rails(canvas: Canvas, rng: Rng, body: Body) -> None:
    """The track under a tram, beyond both of its ends as far as the camera sees."""
    reach = [body.length + 8, -8.0]
    slope = body.along[1]
    if abs(slope) > 0.2:
        depth_at_rear = body.rear[1]
        reach[int(slope > 0)] = (4.0 - depth_at_rear) / slope
    bed, middle = grey(rng, 70, 130, 10), body.width / 2
    for left, right, colour, label in (
        (middle - 1.2, middle + 1.2, bed, "rail track"),
        (middle - 0.85, middle - 0.7, bed * 1.6, None),
        (middle + 0.7, middle + 0.85, bed * 1.6, None),
    ):
        corners = zip((*reach, *reach[::-1]), (left, left, right, right), strict=True)
        outline = [body.corner(a, across) for a, across in corners]
        canvas.shape(GROUND, outline, colour, label)


# ---- the camera ------------------------------------------------------------------------------------------------------


def expose(canvas: Canvas, rng: Rng) -> np.ndarray:
    """What the sensor makes of the scene, [H, W, 3] uint8: blur, uneven light, exposure, colour cast, noise."""
    height, width = canvas.height, canvas.width
    soft = canvas.picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7) * height / 256))
    u = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope_u, slope_v, vignette = rng.uniform(-0.12, 0.12), rng.uniform(-0.1, 0.1), rng.uniform(0, 0.15)
    shift = rng.uniform(0, 256, 2)
    blotches = noise("cloud", u * 60 + shift[0], v * 30 + shift[1])
    light = 1 + slope_u * u + slope_v * v - vignette * (u * u + v * v) + 0.08 * blotches
    cast = (rng.uniform(0.82, 1.18) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
    strength = np.float32(rng.uniform(2, 5) / 128)
    grains = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8).astype(np.float32)
    pixels = np.asarray(soft, np.float32) * light[..., None] * cast + (grains[0] - grains[1]) * strength
    return pixels.clip(0, 255).astype(np.uint8)
