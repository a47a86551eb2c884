"""Draws pictures of things of the 20 classes of PASCAL VOC: the embedded sample in that layout (samples/layout.py).

A thing is a figure of polygons in coordinates of its own: x to the right, y up from where it stands, both in about its
own height. What is painted is marked in the mask of the figure at once, so the label says what is seen. Colours of the
classes overlap on purpose, and so do the places they are seen in; shape and texture tell them apart.
"""

from math import cos, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common.samples.street import (
    Colour,
    Rng,
    asphalt,
    bricks,
    circle,
    expose,
    grass,
    green,
    grey,
    house,
    leaves,
    masonry,
    noise,
    paint,
    plain,
    slabs,
    to_pixel,
    wave,
    windows,
)

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255  # the border drawn around every object
DARK = np.array([28.0, 27, 30])
LAMP = np.array([250.0, 243, 215])
FUR = ((62, 52, 48), (140, 95, 60), (200, 145, 90), (225, 215, 200), (135, 130, 125))


# ---- the canvas ------------------------------------------------------------------------------------------------------


class Canvas:
    """The picture and the class ids of one scene, [height, width] pixels."""

    def __init__(self, size: tuple[int, int]):
        self.height, self.width = size
        self.picture = Image.new("RGB", (self.width, self.height))
        self.brush = ImageDraw.Draw(self.picture)
        self.class_ids = np.zeros(size, np.uint8)

    def paste(self, colours: np.ndarray, mask: Image.Image | None = None) -> None:
        """Colours [height, width, 3] in 0..255 where the mask ("L") is set."""
        self.picture.paste(Image.fromarray(colours.clip(0, 255).astype(np.uint8)), mask=mask)


class Figure:
    """One thing at (u, v) on the canvas, `scale` pixels to its unit, mirrored, tilted (radians) and stretched."""

    def __init__(self, canvas: Canvas, u: float, v: float, scale: float, mirror=1, tilt=0.0, stretch=1.0):
        self.canvas, self.scale = canvas, scale
        self.origin = np.array([u, v])
        across = mirror * stretch * scale
        self.matrix = np.array([[across * cos(tilt), scale * sin(tilt)], [across * sin(tilt), -scale * cos(tilt)]])
        self.mask = Image.new("L", canvas.picture.size)
        self.mask_brush = ImageDraw.Draw(self.mask)

    def pixels(self, points) -> list[tuple[float, float]]:
        return [tuple(pixel) for pixel in (np.array(points) @ self.matrix.T + self.origin).tolist()]

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """The figure's own x and y of every pixel of the canvas, each [height, width] float."""
        v, u = np.mgrid[: self.canvas.height, : self.canvas.width]
        x, y = np.moveaxis((np.stack([u, v], -1) - self.origin) @ np.linalg.inv(self.matrix).T, -1, 0)
        return x, y

    def polygon(self, points, colour, pattern=None):
        """Fill it with a colour, or with pattern(x, y) -> [height, width, 3]; with neither it is a gap: only marked."""
        pixels = self.pixels(points)
        self.mask_brush.polygon(pixels, fill=255)
        if pattern is not None:
            part = Image.new("L", self.mask.size)
            ImageDraw.Draw(part).polygon(pixels, fill=255)
            self.canvas.paste(pattern(*self.coordinates()), part)
        elif colour is not None:
            self.canvas.brush.polygon(pixels, fill=to_pixel(colour))

    def blob(self, points, colour, pattern=None):
        """The polygon with its corners cut off twice: something grown or cast."""
        points = np.array(points, float)
        for _ in range(2):
            following = np.roll(points, -1, axis=0)
            points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1).reshape(-1, 2)
        self.polygon(points, colour, pattern)

    def ellipse(self, x, y, wide, high, colour, pattern=None, tilt=0.0):
        """Half axes `wide` and `high`, turned counterclockwise."""
        outline = [(wide * c, high * s) for c, s in circle(20)]
        turned = [(x + a * cos(tilt) - b * sin(tilt), y + a * sin(tilt) + b * cos(tilt)) for a, b in outline]
        self.polygon(turned, colour, pattern)

    def discs(self, centres, radius, colour):
        for x, y in centres:
            self.ellipse(x, y, radius, radius, colour)

    def box(self, x0, x1, y0, y1, colour, pattern=None):
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, pattern)

    def line(self, points, width, colour):
        """A bent tube, round at its ends."""
        pixels, thickness = self.pixels(points), max(1, round(width * self.scale))
        self.canvas.brush.line(pixels, to_pixel(colour), thickness, joint="curve")
        self.mask_brush.line(pixels, 255, thickness, joint="curve")
        self.discs((points[0], points[-1]), width / 2, colour)

    def shadow(self, wide: float) -> None:
        """Darkens the ground below; not part of the thing."""
        mask = Image.new("L", self.mask.size)
        outline = self.pixels([(wide * c, 0.07 * s) for c, s in circle(20)])
        ImageDraw.Draw(mask).polygon(outline, fill=120)
        self.canvas.picture.paste((10, 10, 14), (0, 0), mask.filter(ImageFilter.GaussianBlur(2)))

    def finish(self, rng: Rng, class_id: int) -> None:
        """Light from one side and the grain of its surface; then the label, void along its outline."""
        x, y = self.coordinates()
        shift, strength = rng.uniform(0, 256), rng.uniform(0.05, 0.3)
        light = 0.95 + strength * (y - 0.5) + rng.uniform(-0.25, 0.25) * x.clip(-1, 1)
        light = light + 0.12 * noise("cloud", x * 50 + shift, y * 50) + 0.08 * noise("grain", x * 110, y * 110 + shift)
        self.canvas.paste(np.asarray(self.canvas.picture) * light.clip(0.4, 1.4)[..., None], self.mask)
        reach = max(1, round(min(self.mask.size) / 160))
        outer, inner = ImageFilter.MaxFilter(4 * reach + 1), ImageFilter.MinFilter(2 * reach + 1)
        self.canvas.class_ids[np.asarray(self.mask.filter(outer)) > 0] = VOID
        self.canvas.class_ids[np.asarray(self.mask.filter(inner)) > 0] = class_id


# ---- colours and parts -----------------------------------------------------------------------------------------------


def pick(rng: Rng, *colours: tuple[int, int, int]) -> Colour:
    return np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.15) + rng.uniform(-12, 12, 3)


def wood(rng: Rng) -> Colour:
    return pick(rng, (150, 100, 60), (95, 62, 42), (200, 165, 120), (190, 185, 180))


def patches(rng: Rng, one: Colour, other: Colour, level: float):
    shift = rng.uniform(70, 180, 2)
    return lambda x, y: np.where((noise("cloud", x * 42 + shift[0], y * 42 + shift[1]) > level)[..., None], other, one)


def stripes(one: Colour, other: Colour, period: float, share=0.5, slope=0.0):
    return lambda x, y: np.where((wave(x + slope * y, period) < share)[..., None], other, one)


def wheels(f: Figure, places, radius: float, hub: Colour) -> None:
    for x in places:
        f.discs([(x, radius)], radius, DARK)
        f.discs([(x, radius)], radius * 0.55, hub)
        f.discs([(x, radius)], radius * 0.2, hub * 0.4)


def legs(f: Figure, rng: Rng, places, top: float, width: float, colour: Colour, foot: Colour) -> None:
    """Four legs, the first two, beyond, in the shade."""
    for x, shade in zip(places, (0.65, 0.65, 1, 1), strict=True):
        step = x + rng.uniform(-0.08, 0.08)
        f.line([(x, top), (x + rng.uniform(-0.05, 0.05), top / 2), (step, 0.06)], width, colour * shade)
        f.line([(step, 0.05), (step + 0.03, 0.02)], width * 1.1, foot)


# ---- the classes -----------------------------------------------------------------------------------------------------


def draw_aeroplane(f: Figure, rng: Rng) -> None:
    hull, trim = grey(rng, 110, 240, 25), paint(rng)
    f.polygon([(0.2, 0.42), (-0.25, 0.75), (-0.4, 0.75), (-0.2, 0.4)], hull * 0.6)  # far wing
    f.polygon([(-1.1, 0.4), (-1.35, 0.95), (-1.1, 0.95), (-0.7, 0.42)], trim)
    f.blob([(-1.3, 0.42), (0.8, 0.48), (1.15, 0.38), (1.25, 0.28), (1.1, 0.2), (0.7, 0.15), (-0.5, 0.18)], hull)
    f.discs([(-0.65 + 0.11 * i, 0.37) for i in range(14)], 0.028, DARK)
    f.polygon([(0.95, 0.42), (1.08, 0.36), (1.02, 0.33), (0.92, 0.35)], DARK)
    f.blob([(-0.02, 0.02), (0.3, 0.02), (0.33, 0.14), (-0.02, 0.14)], hull * 0.5)
    f.polygon([(0.3, 0.28), (-0.5, -0.2), (-0.75, -0.2), (-0.3, 0.25)], hull * 0.8)
    f.polygon([(-0.95, 0.36), (-1.35, 0.22), (-1.5, 0.22), (-1.25, 0.38)], hull * 0.75)


def draw_bicycle(f: Figure, rng: Rng) -> None:
    colour, crank, front = paint(rng), (-0.02, 0.3), (0.35, 0.76)
    for x in (-0.5, 0.5):
        f.discs([(x, 0.34)], 0.34, None)  # the gaps between spokes belong to the wheel
        for c, s in circle(12):
            f.line([(x, 0.34), (x + 0.3 * c, 0.34 + 0.3 * s)], 0.008, DARK * 4)
        f.line([(x + 0.32 * c, 0.34 + 0.32 * s) for c, s in (*circle(24), *circle(24)[:2])], 0.05, DARK)
    f.polygon([(-0.5, 0.34), (-0.2, 0.72), front, crank], None)
    for tube in ([(-0.5, 0.34), crank, (-0.18, 0.75), (-0.5, 0.34)], [crank, front], [(-0.16, 0.68), (0.34, 0.7)]):
        f.line(tube, 0.05, colour)
    f.line([(0.5, 0.34), front, (0.32, 0.92), (0.42, 0.98), (0.5, 0.92)], 0.045, colour * 0.7)
    f.blob([(-0.36, 0.84), (-0.3, 0.75), (0.04, 0.77), (-0.02, 0.85)], DARK)


def draw_bird(f: Figure, rng: Rng) -> None:
    """Standing, or flying with its wings raised."""
    back, breast = pick(rng, (75, 120, 190), (215, 180, 70), (110, 115, 125)), grey(rng, 110, 240, 40)
    bill = pick(rng, (230, 160, 50), (60, 55, 50))
    flying = rng.random() < 0.5
    if flying:
        f.blob([(0.0, 0.6), (0.35, 1.35), (0.6, 1.3), (0.45, 0.9), (0.2, 0.55)], back * 0.6)
    else:
        for x in (-0.02, 0.12):
            f.line([(x, 0.35), (x + 0.03, 0.03), (x + 0.13, 0.0)], 0.045, bill * 0.8)
    f.polygon([(-0.45, 0.55), (-1.0, 0.35), (-0.98, 0.2), (-0.35, 0.38)], back * 0.6)
    f.blob([(-0.7, 0.42), (-0.2, 0.25), (0.25, 0.3), (0.5, 0.7), (0.3, 0.95), (0.0, 0.85)], back)
    f.blob([(-0.1, 0.28), (0.25, 0.32), (0.46, 0.65), (0.3, 0.7), (0.1, 0.5)], breast)
    f.discs([(0.32, 0.88)], 0.18, back)
    f.polygon([(0.47, 0.96), (0.78, 0.85), (0.47, 0.8)], bill)
    f.discs([(0.39, 0.92)], 0.03, DARK)
    upper = [(0.15, 0.7), (-0.35, 1.4), (-0.8, 1.45), (-0.65, 1.05), (-0.3, 0.5)]
    folded = [(-0.8, 0.35), (-0.1, 0.4), (0.2, 0.7), (-0.1, 0.8)]
    f.blob(upper if flying else folded, back, stripes(back * 0.75, back * 0.45, 0.09, 0.35, 0.6))


def draw_boat(f: Figure, rng: Rng) -> None:
    """With sails, or with a cabin."""
    hull, trim, light = pick(rng, (185, 55, 45), (45, 75, 135), (225, 225, 220)), paint(rng), grey(rng, 190, 245, 12)
    if rng.random() < 0.5:
        f.line([(0.0, 0.2), (0.0, 1.4)], 0.035, wood(rng))
        f.blob([(-0.04, 0.36), (-0.04, 1.4), (-0.3, 0.8), (-0.7, 0.34)], light)
        f.polygon([(0.05, 0.36), (0.03, 1.3), (0.6, 0.34)], light * 0.88)
    else:
        f.box(-0.5, 0.25, 0.25, 0.65, light)
        f.box(-0.55, 0.3, 0.62, 0.7, trim)
        f.discs([(-0.35, 0.5), (-0.12, 0.5), (0.11, 0.5)], 0.08, DARK * 1.8)
        f.box(-0.3, -0.15, 0.7, 0.95, trim)
    f.polygon([(-0.85, 0.32), (1.0, 0.38), (0.7, 0.0), (-0.7, 0.0)], hull)
    f.polygon([(-0.85, 0.32), (1.0, 0.38), (0.95, 0.31), (-0.83, 0.26)], light)


def draw_bottle(f: Figure, rng: Rng) -> None:
    glass, cap = pick(rng, (60, 100, 60), (110, 65, 35), (170, 190, 195), (150, 60, 70)), paint(rng)
    label, wide, neck, shoulder = grey(rng, 170, 245, 30), rng.uniform(0.13, 0.18), 0.05, rng.uniform(0.55, 0.68)
    side = [(wide, 0.0), (wide, 0.2), (wide, shoulder), (neck, shoulder + 0.16), (neck, 0.97)]

    def shine(x, y):
        return (1.15 - 0.8 * (x / wide) ** 2 + 0.9 * (abs(x / wide + 0.45) < 0.12))[..., None] * glass

    f.blob([*side, *[(-x, y) for x, y in reversed(side)]], glass, shine)
    f.box(-neck - 0.015, neck + 0.015, 0.9, 1.0, cap)
    f.box(-wide, wide, 0.18, shoulder - 0.12, label)
    f.box(-wide * 0.7, wide * 0.7, 0.3, 0.38, cap * 0.8)


def draw_bus(f: Figure, rng: Rng) -> None:
    colour, glass = pick(rng, (215, 175, 55), (200, 65, 45), (225, 135, 55)), grey(rng, 35, 90, 15)
    f.blob([(-1.25, 0.1), (-1.25, 1.0), (-0.9, 1.03), (0.9, 1.03), (1.25, 0.98), (1.27, 0.1), (0, 0.08)], colour)
    f.box(-1.2, 1.22, 0.2, 0.32, paint(rng))
    f.box(-1.17, 1.2, 0.5, 0.88, glass, stripes(glass, colour * 0.8, 0.33, 0.1))
    f.box(0.62, 0.92, 0.12, 0.88, glass, stripes(glass * 1.3, DARK, 0.15, 0.15))
    f.box(0.3, 1.15, 0.9, 0.98, DARK)
    f.box(0.5, 0.95, 0.92, 0.96, LAMP * [1, 0.7, 0.3])
    wheels(f, (-0.75, 0.42), 0.17, grey(rng, 120, 200, 5))


def draw_car(f: Figure, rng: Rng) -> None:
    colour = pick(rng, (170, 35, 40), (45, 85, 165), (175, 180, 188), (45, 47, 54))
    glass, rear = grey(rng, 40, 110, 20), rng.uniform(-1.0, -0.7)
    f.blob([(rear, 0.45), (-0.5, 0.9), (-0.2, 0.97), (0.2, 0.95), (0.4, 0.85), (0.75, 0.5), (0, 0.4)], colour * 0.9)
    f.polygon([(rear + 0.2, 0.52), (-0.43, 0.84), (-0.05, 0.87), (-0.05, 0.52)], glass)
    f.polygon([(0.02, 0.52), (0.02, 0.87), (0.28, 0.82), (0.58, 0.52)], glass)
    low = [(-1.15, 0.15), (-1.15, 0.52), (-0.9, 0.58), (0.6, 0.55), (1.05, 0.46), (1.2, 0.35), (1.17, 0.13), (0, 0.12)]
    f.blob(low, colour)
    f.line([(0.02, 0.18), (0.02, 0.5)], 0.012, colour * 0.5)
    f.discs([(1.06, 0.4)], 0.06, LAMP)
    f.discs([(-1.08, 0.42)], 0.05, LAMP * [0.8, 0.15, 0.15])
    wheels(f, (-0.68, 0.68), 0.22, grey(rng, 120, 210, 5))


def draw_cat(f: Figure, rng: Rng) -> None:
    """Sitting, seen from the front, often striped."""
    coat, belly = pick(rng, *FUR[2:]), grey(rng, 150, 240, 12)
    tabby = stripes(coat, coat * 0.6, 0.09, 0.4, rng.uniform(-0.8, 0.8)) if rng.random() < 0.6 else None
    f.line([(0.2, 0.07), (0.5, 0.08), (0.6, 0.25), (0.55, 0.45), (0.62, 0.6)], 0.1, coat * 0.8)
    f.blob([(-0.42, 0.0), (-0.42, 0.3), (-0.2, 0.72), (0.2, 0.72), (0.42, 0.3), (0.42, 0.0)], coat, tabby)
    f.blob([(-0.13, 0.1), (-0.15, 0.6), (0.15, 0.6), (0.13, 0.1)], belly)
    for side in (-1, 1):
        f.line([(side * 0.1, 0.42), (side * 0.12, 0.06)], 0.1, coat * 0.9)
        f.polygon([(side * 0.28, 0.8), (side * 0.27, 1.17), (side * 0.04, 0.98)], coat * 0.8)
    f.ellipse(0, 0.82, 0.29, 0.23, coat, tabby)
    f.ellipse(0, 0.73, 0.13, 0.09, belly)
    f.discs([(-0.12, 0.86), (0.12, 0.86)], 0.055, np.array([175.0, 190, 80]))
    f.discs([(-0.12, 0.86), (0.12, 0.86), (0, 0.77)], 0.025, DARK)


def draw_chair(f: Figure, rng: Rng) -> None:
    """Seat and back on four legs, seen a little from the side."""
    frame = wood(rng) if rng.random() < 0.6 else paint(rng)
    for x in (-0.12, 0.38):
        f.line([(x, 0.5), (x, 0.12)], 0.05, frame * 0.55)
    f.polygon([(-0.34, 0.5), (-0.4, 1.1), (0.22, 1.15), (0.22, 0.55)], None)  # what shows between the rails
    for i in range(4):
        f.line([(-0.32 + 0.18 * i, 0.5), (-0.37 + 0.19 * i, 1.1)], 0.045, frame * 0.85)
    f.line([(-0.39, 1.08), (0.22, 1.13)], 0.11, frame)
    f.polygon([(-0.36, 0.45), (-0.1, 0.36), (0.45, 0.5), (0.45, 0.44), (-0.1, 0.29), (-0.36, 0.39)], frame * 0.7)
    f.polygon([(-0.36, 0.45), (0.2, 0.56), (0.45, 0.5), (-0.1, 0.36)], paint(rng))
    for x, top, foot in ((-0.34, 0.4, 0.03), (-0.08, 0.3, 0.03), (0.42, 0.44, 0.1)):
        f.line([(x, top), (x, foot)], 0.055, frame)


def draw_cow(f: Figure, rng: Rng) -> None:
    """Heavy and long, in patches, with horns and an udder."""
    coat, pink = pick(rng, *FUR[:2]), np.array([215.0, 160, 150])
    hide = patches(rng, coat, pick(rng, *FUR[2:4]), rng.uniform(-0.1, 0.1))
    legs(f, rng, (-0.5, 0.42, -0.66, 0.56), 0.5, 0.13, coat * 0.85, DARK)
    f.line([(-0.78, 0.9), (-0.9, 0.6), (-0.88, 0.35)], 0.05, coat * 0.7)
    f.discs([(-0.4, 0.4)], 0.13, pink)
    f.blob([(-0.85, 0.4), (-0.85, 1.0), (-0.3, 0.95), (0.6, 1.02), (0.8, 0.8), (0.7, 0.4), (-0.1, 0.33)], coat, hide)
    for x in (0.7, 0.86):
        f.line([(x, 1.02), (x - 0.03, 1.12), (x + 0.05, 1.18)], 0.04, LAMP * 0.85)
    f.blob([(0.45, 1.0), (0.8, 1.12), (0.97, 0.98), (1.15, 0.62), (1.02, 0.52), (0.85, 0.65), (0.5, 0.6)], coat, hide)
    f.ellipse(0.66, 0.95, 0.13, 0.05, coat * 0.7, tilt=0.5)
    f.discs([(1.05, 0.62)], 0.09, pink)
    f.discs([(0.9, 0.91)], 0.03, DARK)


def draw_diningtable(f: Figure, rng: Rng) -> None:
    """A wide top on four legs, laid with plates and a bowl."""
    frame, china = wood(rng), grey(rng, 200, 250, 10)
    top = frame if rng.random() < 0.5 else paint(rng)
    for x, foot in ((-0.6, 0.2), (0.6, 0.2), (-0.85, 0.0), (0.85, 0.0)):
        f.line([(x, 0.5), (x, foot)], 0.09, frame * (0.5 if foot else 0.8))
    f.polygon([(-1.0, 0.5), (-0.7, 0.85), (0.7, 0.85), (1.0, 0.5)], top, stripes(top, top * 0.88, 0.3, 0.1))
    f.box(-1.0, 1.0, 0.4, 0.5, top * 0.65)
    for x, y in ((-0.55, 0.6), (0.5, 0.6), (-0.4, 0.78), (0.4, 0.78)):
        f.ellipse(x, y, 0.17, 0.05, china)
        f.ellipse(x, y, 0.1, 0.028, china * 0.8)
    f.blob([(-0.2, 0.85), (-0.15, 0.66), (0.15, 0.66), (0.2, 0.85)], paint(rng))


def draw_dog(f: Figure, rng: Rng) -> None:
    """Seen from the side: hanging ears, a muzzle, a collar, the tail up."""
    coat, ear = pick(rng, *FUR), pick(rng, *FUR) * 0.6
    hide = patches(rng, coat, ear, 0.25) if rng.random() < 0.4 else None
    f.line([(-0.5, 0.62), (-0.72, 0.78), (-0.76, 1.02)], 0.09, coat * 0.85)
    legs(f, rng, (-0.32, 0.3, -0.42, 0.2), 0.45, 0.12, coat * 0.9, coat * 0.7)
    f.blob([(-0.62, 0.4), (-0.58, 0.75), (0.0, 0.68), (0.45, 0.8), (0.5, 0.4), (0.2, 0.3), (-0.2, 0.42)], coat, hide)
    f.blob([(0.12, 0.68), (0.32, 1.05), (0.65, 1.0), (0.52, 0.5)], coat)
    f.line([(0.3, 0.82), (0.56, 0.74)], 0.06, paint(rng))
    f.blob([(0.3, 1.15), (0.62, 1.2), (0.72, 1.05), (1.0, 0.99), (1.0, 0.84), (0.6, 0.8), (0.35, 0.9)], coat)
    f.discs([(0.95, 0.98), (0.63, 1.04)], 0.045, DARK)
    f.ellipse(0.4, 0.96, 0.09, 0.2, ear, tilt=0.15)


def draw_horse(f: Figure, rng: Rng) -> None:
    """High on slender legs, a long upright neck with a mane, a long tail."""
    coat, mane = pick(rng, *FUR[1:3]), pick(rng, *FUR[2:]) * 0.6
    legs(f, rng, (-0.38, 0.3, -0.5, 0.42), 0.6, 0.09, coat * 0.9, DARK)
    f.line([(-0.6, 0.85), (-0.75, 0.7), (-0.72, 0.3)], 0.13, mane)
    f.blob([(-0.68, 0.55), (-0.65, 0.95), (0.0, 0.82), (0.45, 0.95), (0.6, 0.65), (0.4, 0.5), (0.0, 0.54)], coat)
    f.blob([(0.15, 0.85), (0.48, 1.38), (0.78, 1.38), (0.6, 0.85), (0.5, 0.55)], coat)
    f.blob([(0.5, 1.46), (0.75, 1.5), (1.12, 1.12), (1.05, 0.98), (0.9, 1.02), (0.6, 1.2)], coat)
    f.polygon([(0.56, 1.42), (0.6, 1.58), (0.68, 1.44)], coat * 0.8)
    f.line([(0.58, 1.42), (0.4, 1.22), (0.22, 0.92)], 0.13, mane)
    f.discs([(0.78, 1.33), (1.05, 1.06)], 0.03, DARK)


def draw_motorbike(f: Figure, rng: Rng) -> None:
    """Two thick wheels, an engine between them, a tank and a long exhaust."""
    colour, steel = paint(rng), grey(rng, 110, 190, 8)
    f.polygon([(-0.62, 0.25), (-0.5, 0.6), (0.45, 0.6), (0.65, 0.25)], DARK * 1.6)
    wheels(f, (-0.65, 0.68), 0.29, steel)
    f.line([(0.68, 0.29), (0.48, 0.8), (0.34, 0.95)], 0.07, steel)
    f.ellipse(0.0, 0.36, 0.22, 0.17, steel, stripes(steel, steel * 0.5, 0.09, 0.4))
    f.line([(0.1, 0.24), (-0.35, 0.2), (-0.95, 0.3)], 0.1, steel * 1.15)
    f.blob([(-0.1, 0.58), (-0.08, 0.82), (0.3, 0.88), (0.5, 0.68), (0.4, 0.55)], colour)
    f.blob([(-0.95, 0.72), (-0.9, 0.8), (-0.3, 0.72), (-0.02, 0.72), (-0.05, 0.6), (-0.6, 0.58)], DARK)
    f.blob([(-0.98, 0.66), (-0.55, 0.6), (-0.4, 0.45), (-0.9, 0.5)], colour)
    f.discs([(0.55, 0.82)], 0.1, LAMP)


def draw_person(f: Figure, rng: Rng) -> None:
    skin, shirt, trousers = (
        pick(rng, (220, 175, 145), (165, 115, 88), (105, 72, 55)),
        paint(rng),
        pick(rng, (60, 80, 135), (55, 55, 60), (130, 115, 90)),
    )
    cloth = stripes(shirt, shirt * 0.6 + 40, 0.07, 0.4) if rng.random() < 0.4 else None
    hair, stride = pick(rng, *FUR) * 0.6, rng.uniform(0.03, 0.13)
    for side in (-1, 1):
        f.line([(side * 0.05, 0.5), (side * (stride + 0.03), 0.25), (side * stride, 0.05)], 0.095, trousers)
        f.ellipse(side * stride + 0.03, 0.02, 0.06, 0.03, DARK)
        hand = (side * rng.uniform(0.16, 0.36), rng.choice([0.44, 0.52, 0.8]))
        f.line([(side * 0.13, 0.77), (side * 0.2, 0.62), hand], 0.06, shirt * 0.8)
        f.discs([hand], 0.035, skin)
    f.polygon(
        [(-0.1, 0.46), (-0.11, 0.6), (-0.17, 0.8), (0, 0.84), (0.17, 0.8), (0.11, 0.6), (0.1, 0.46)], shirt, cloth
    )
    f.box(-0.035, 0.035, 0.79, 0.88, skin * 0.85)
    f.ellipse(0, 0.95, 0.085, 0.085, hair)
    f.ellipse(0, 0.92, 0.07, 0.085, skin)
    f.discs([(-0.028, 0.93), (0.028, 0.93)], 0.01, DARK)


def draw_pottedplant(f: Figure, rng: Rng) -> None:
    """Long leaves in a fan, or a bush in bloom."""
    pot, leaf = pick(rng, (175, 95, 65), (215, 210, 200), (90, 90, 100)), green(rng)
    if rng.random() < 0.5:
        for turn in rng.permutation(np.linspace(-1.2, 1.2, 13)):
            tone = leaf * rng.uniform(0.6, 1.4)
            f.ellipse(0.35 * sin(turn), 0.4 + 0.38 * cos(turn), 0.06, 0.36, tone, tilt=-turn)
    else:
        f.box(-0.03, 0.03, 0.3, 0.6, wood(rng))
        foliage, reach = leaves(rng, leaf * 1.2), rng.uniform(0.75, 1.1, 20)
        crown = [(0.42 * c * r, 0.75 + 0.33 * s * r) for (c, s), r in zip(circle(20), reach, strict=True)]
        f.polygon(crown, leaf, lambda x, y: foliage(3 * x, 3 * y))
        f.discs(rng.uniform(-0.22, 0.22, (rng.integers(9), 2)) + [0, 0.75], 0.045, paint(rng))
    f.polygon([(-0.24, 0.36), (0.24, 0.36), (0.17, 0.0), (-0.17, 0.0)], pot)
    f.box(-0.27, 0.27, 0.32, 0.42, pot * 1.1)


def draw_sheep(f: Figure, rng: Rng) -> None:
    """A ball of curls on short thin legs; face and legs of one colour."""
    wool, face, shift = pick(rng, *FUR) * 0.3 + 150, pick(rng, *FUR) * 0.7, rng.uniform(70, 180)

    def curls(x, y):
        return (1 + 0.5 * noise("leaf", x * 40 + shift, y * 40 + shift))[..., None] * wool

    legs(f, rng, (-0.28, 0.28, -0.4, 0.4), 0.35, 0.08, face, DARK)
    for c, s in circle(14):
        f.ellipse(0.55 * c, 0.58 + 0.26 * s, 0.17, 0.15, wool, curls)
    f.ellipse(0, 0.58, 0.6, 0.3, wool, curls)
    f.blob([(0.5, 0.9), (0.72, 0.98), (0.88, 0.8), (0.95, 0.6), (0.82, 0.53), (0.62, 0.65)], face)
    f.ellipse(0.55, 0.83, 0.12, 0.05, face * 0.8, tilt=0.4)
    f.ellipse(0.64, 0.94, 0.14, 0.08, wool, curls)
    f.discs([(0.78, 0.8)], 0.03, DARK)


def draw_sofa(f: Figure, rng: Rng) -> None:
    cover, seats = pick(rng, (155, 65, 60), (110, 70, 125), (70, 120, 110)), rng.integers(2, 4)
    cloth, wide = stripes(cover, cover * 0.8, 0.12, 0.3) if rng.random() < 0.3 else None, 1.7 / seats
    f.discs([(-0.95, 0.06), (0.95, 0.06)], 0.05, DARK)
    f.blob([(-1.05, 0.3), (-1.05, 1.0), (0, 0.95), (1.05, 1.0), (1.05, 0.3)], cover * 0.9, cloth)
    f.box(-1.0, 1.0, 0.08, 0.36, cover * 0.75)
    for x in -0.85 + wide * np.arange(seats):
        f.blob([(x, 0.4), (x, 0.9), (x + wide, 0.9), (x + wide, 0.4)], cover * 1.05, cloth)
        f.blob([(x, 0.26), (x - 0.02, 0.52), (x + wide + 0.02, 0.52), (x + wide, 0.26)], cover * 1.2)
    for side in (-1, 1):
        f.blob([(side * 0.8, 0.06), (side * 0.8, 0.72), (side * 1.2, 0.75), (side * 1.15, 0.06)], cover)
    f.polygon([(-0.7, 0.5), (-0.78, 0.8), (-0.48, 0.85), (-0.42, 0.52)], paint(rng))


def draw_train(f: Figure, rng: Rng) -> None:
    """The front close by, its cars running away to one side."""
    colour, trim, glass = pick(rng, (60, 95, 175), (55, 145, 110), (205, 205, 210)), paint(rng), grey(rng, 30, 70, 10)

    def band(low, high, first, last, tone):
        """Along the side, between two heights of the front and two shares of the side's length in the picture."""
        ends = [(0.2 - 1.9 * t, 1 - 0.75 * t) for t in (first, last)]
        f.polygon(
            [(ends[i][0], 0.1 + (h - 0.1) * ends[i][1]) for i, h in ((0, low), (1, low), (1, high), (0, high))], tone
        )

    for low, high, tone in ((0.05, 1.0, colour * 0.8), (0.22, 0.34, trim), (0.03, 0.12, DARK)):
        band(low, high, 0, 1, tone)
    for t in 1 - 0.87 ** np.arange(18):  # windows, each nearer to the next one
        band(0.5, 0.8, t + 0.04, t + 0.04 + 0.09 * (1 - t), glass)
    f.blob([(0.18, 0.05), (0.18, 0.95), (0.3, 1.06), (0.8, 1.06), (0.92, 0.95), (0.92, 0.05), (0.55, 0.03)], colour)
    f.box(0.2, 0.9, 0.2, 0.34, trim)
    for x in (0.27, 0.57):
        f.box(x, x + 0.26, 0.52, 0.85, glass)
    f.discs([(0.3, 0.42), (0.8, 0.42), (0.55, 0.95)], 0.05, LAMP)
    f.box(0.25, 0.85, 0.02, 0.12, DARK)


def draw_tvmonitor(f: Figure, rng: Rng) -> None:
    """A framed screen on a foot; it shows colours, writing or nothing."""
    case = grey(rng, 20, 70, 6) if rng.random() < 0.7 else grey(rng, 150, 220, 8)
    one, other, kind, shift = paint(rng), paint(rng), rng.integers(3), rng.uniform(70, 180)

    def screen(x, y):
        if kind == 0:
            return one + (other - one) * (0.5 + noise("cloud", x * 50 + shift, y * 50 + shift))[..., None]
        if kind == 1:
            writing = (wave(y, 0.09) < 0.45) & (noise("grain", x * 9, np.floor(y / 0.09) + shift) > -0.3)
            return np.where(writing[..., None], DARK, LAMP)
        return (35 + 60 * np.clip(x + y - 0.4, 0, 1))[..., None] * [0.8, 0.95, 1.1]

    f.polygon([(-0.12, 0.3), (0.12, 0.3), (0.15, 0.05), (-0.15, 0.05)], case * 0.7)
    f.ellipse(0, 0.05, 0.38, 0.05, case * 0.8)
    f.box(-0.8, 0.8, 0.18, 1.1, case)
    f.box(-0.72, 0.72, 0.27, 1.03, one, screen)


# by class id - 1: how it is drawn, its width and height in its own units
CLASSES = (
    (draw_aeroplane, 2.8, 1.2), (draw_bicycle, 1.7, 1.0), (draw_bird, 1.7, 1.3), (draw_boat, 1.9, 1.4),
    (draw_bottle, 0.45, 1.0), (draw_bus, 2.5, 1.0), (draw_car, 2.4, 1.0), (draw_cat, 1.1, 1.2), (draw_chair, 0.9, 1.2),
    (draw_cow, 2.1, 1.2), (draw_diningtable, 2.0, 0.9), (draw_dog, 1.8, 1.2), (draw_horse, 1.9, 1.6),
    (draw_motorbike, 2.0, 1.0), (draw_person, 0.8, 1.05), (draw_pottedplant, 1.0, 1.15), (draw_sheep, 1.7, 1.0),
    (draw_sofa, 2.4, 1.0), (draw_train, 2.7, 1.1), (draw_tvmonitor, 1.6, 1.1),
)  # fmt: skip


# ---- the scene -------------------------------------------------------------------------------------------------------

# what may be seen where
SCENES = {
    "sky": "aeroplane bird".split(),
    "water": "boat bird".split(),
    "meadow": "bicycle bird cat cow dog horse person sheep".split(),
    "street": "bicycle bus car cat dog horse motorbike person pottedplant train".split(),
    "room": "bottle cat chair diningtable dog person pottedplant sofa tvmonitor".split(),
}


def draw_objects(size: tuple[int, int], rng: Rng, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One to three things in a place: picture [H, W, 3] uint8 RGB and class ids [H, W] uint8, 0..20 and 255 for void.

    The largest, nearest one is of class 1 + index % 20, so that any twenty pictures in a row hold all classes.
    """
    canvas, main = Canvas(size), CLASS_NAMES[1 + index % len(CLASSES)]
    places = [place for place, names in SCENES.items() if main in names]
    place, side = places[rng.integers(len(places))], rng.choice([-1, 1])
    horizon = draw_background(canvas, rng, place)
    for i in range(rng.integers(0, 3)):
        name, u = rng.choice(SCENES[place]), 0.5 + side * (-1) ** i * rng.uniform(0.25, 0.42)
        place_object(canvas, rng, name, u, rng.uniform(horizon + 0.05, 0.85), rng.uniform(0.25, 0.5), place)
    place_object(canvas, rng, main, rng.uniform(0.4, 0.6), rng.uniform(0.85, 0.98), rng.uniform(0.75, 1.0), place)
    return expose(canvas, rng), canvas.class_ids


def place_object(canvas: Canvas, rng: Rng, name: str, u: float, v: float, share: float, place: str) -> None:
    """Draw a thing that takes `share` of the picture's width or height and stands at (u, v), shares as well."""
    class_id = CLASS_NAMES.index(name)
    draw, wide, high = CLASSES[class_id - 1]
    scale, tilt = share * min(canvas.width / wide, canvas.height / high), rng.uniform(-0.06, 0.06)
    if place == "sky":
        v, tilt = rng.uniform(0.3, 0.6) + scale * high / canvas.height / 2, tilt * 5
    mirror, stretch = rng.choice([-1, 1]), rng.uniform(0.85, 1.1)
    figure = Figure(canvas, u * canvas.width, v * canvas.height, scale, mirror, tilt, stretch)
    if place not in ("sky", "water"):
        figure.shadow(wide * 0.45)
    draw(figure, rng)
    figure.finish(rng, class_id)


def draw_background(canvas: Canvas, rng: Rng, place: str) -> float:
    """Wall or sky, floor or ground, and things of no class; returns the horizon as a share of the height."""
    height, width = canvas.height, canvas.width
    horizon = 0.7 if place == "sky" else rng.uniform(0.35, 0.6)
    v, u = np.mgrid[:height, :width] / height
    x, y = (u - width / height / 2) * 5, (horizon - v) * 5  # metres on the wall
    depth = 2.5 / np.maximum(v - horizon, 0.02)
    far = far_side(rng, place)(x, y)
    if place in ("meadow", "water"):
        ridge = rng.uniform(0, 0.9) + 1.2 * noise("cloud", x * 12 + rng.uniform(70, 180), 0 * y)
        far = np.where((y < ridge)[..., None], leaves(rng, green(rng))(x, y), far)
    near = ground(rng, place)((u - width / height / 2) * depth, depth)
    canvas.paste(far if place == "sky" else np.where((v < horizon)[..., None], far, near))
    for _ in range(rng.integers(0, 4) if place != "sky" else 0):
        draw_clutter(Figure(canvas, rng.uniform(0, width), horizon * height, height * rng.uniform(0.1, 0.2)), rng)
    return horizon


def draw_clutter(f: Figure, rng: Rng) -> None:
    """A box, a post, a bush or a picture on the wall: background that draws the eye."""
    colour, kind, wide, high = paint(rng), rng.integers(4), rng.uniform(0.3, 0.9), rng.uniform(0.5, 1.5)
    if kind == 0:
        f.box(-wide, wide, -0.2, high, colour)
    elif kind == 1:
        f.line([(0, -0.2), (0, 2.5)], 0.2, colour)
    elif kind == 2:
        f.ellipse(0, high / 3, wide, high / 2, colour, leaves(rng, colour))
    else:
        f.box(-wide, wide, 0.8, 0.8 + high, colour)
        f.box(-0.8 * wide, 0.8 * wide, 0.9, 0.7 + high, paint(rng))


def far_side(rng: Rng, place: str):
    """What stands upright behind the scene, over metres to the right and up."""
    colour, shift, cover = paint(rng) * 0.6 + 80, rng.uniform(80, 150, 2), rng.uniform(-0.4, 0.5)
    zenith, clouds = (
        pick(rng, (105, 155, 215), (165, 175, 190), (205, 205, 210), (180, 150, 150)),
        grey(rng, 190, 250, 8),
    )

    def sky(x, y):
        white = (2 * noise("cloud", x * 14 + shift[0], y * 22 + shift[1]) + cover).clip(0, 0.9)
        return zenith + (clouds - zenith) * np.maximum(white, 0.5 - 0.2 * y.clip(0, 2.5))[..., None]

    masonry_wall, panelling = bricks(rng, masonry(rng)), stripes(colour, colour * 0.88, rng.uniform(0.3, 0.8))
    kinds = {
        "room": (plain(rng, colour), plain(rng, colour), panelling, masonry_wall),
        "street": (windows(rng, house(rng), 20.0), masonry_wall, leaves(rng, green(rng)), sky),
    }.get(place, (sky,))
    return kinds[rng.integers(len(kinds))]


def ground(rng: Rng, place: str):
    """What lies below the scene, over metres to the right and ahead."""
    stone, water, shift = grey(rng, 90, 190, 12), pick(rng, (70, 110, 150), (90, 125, 120)), rng.uniform(0, 256)
    kinds = {
        "room": (slabs(rng, stone), plain(rng, paint(rng), 0.3), bricks(rng, wood(rng))),
        "street": (asphalt(rng, stone * 0.75), slabs(rng, stone)),
        "water": (lambda a, b: (1 + 0.35 * noise("leaf", a * 4 + shift, b * 14))[..., None] * water,),
    }.get(place, (grass(rng, green(rng) + 30),))
    return kinds[rng.integers(len(kinds))]
