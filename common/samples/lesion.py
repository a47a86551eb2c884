"""Draws pictures of skin lesions as a dermatoscope shows them: the embedded sample of ISIC 2018 (samples/layout.py).

Dark alone does not make a lesion: hairs, the corners of the picture and ruler marks are dark as well.
"""

from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common.samples.street import Colour, Rng, circle, grey, noise, to_pixel

SKIN = ((232, 196, 175), (222, 175, 145), (205, 155, 125), (176, 128, 100), (225, 165, 155))
PIGMENT = ((125, 80, 55), (85, 55, 42), (60, 45, 45), (150, 85, 75), (105, 95, 105))


def draw_lesion(size: tuple[int, int], rng: Rng, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One lesion: picture [H, W, 3] uint8 RGB and mask [H, W] uint8, 255 on the lesion (5 to 45 % of it) and else 0.

    `index` deals out what lies on the skin besides: every fourth picture shows a ruler, every fourth air bubbles.
    """
    height, width = size
    v, u = np.mgrid[:height, :width]
    x, y = (u - width / 2) / height, (v - height / 2) / height  # heights of the picture, from its centre

    forms = [outline(rng, x, y, rng.uniform(-0.12, 0.12, 2))]
    if rng.random() < 0.3:  # a fainter patch that has grown out of it, and belongs to it
        turn = rng.uniform(0, 2 * pi)
        forms.append(outline(rng, x, y, (0.3 * cos(turn), 0.3 * sin(turn))) * rng.uniform(1.3, 1.8))
    nearest = np.min(forms, axis=0)
    edge = np.quantile(nearest, rng.uniform(0.06, 0.43))  # the share of the picture that it takes, whatever its form

    skin = texture(rng, x, y, shade(rng, SKIN), 0.06)
    blur = (0.04 + 0.16 * (noise("cloud", *shifted(rng, x, y, 50)) + 0.4).clip(0, 1)) * edge  # sharp here, vague there
    covers = [((edge - form) / blur + 0.5).clip(0, 1) * cover for form, cover in zip(forms, (1, 0.5), strict=False)]
    cover = np.max(covers, axis=0) * rng.uniform(0.6, 1)
    pixels = skin + (pigment(rng, x, y) - skin) * cover[..., None]

    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw_hairs(picture, rng, rng.choice([0, 3, 12]))
    if index % 4 == 1:
        draw_ruler(picture, rng)
    elif index % 4 == 3:
        draw_bubbles(picture, rng)
    return expose(picture, rng, x, y), np.where(nearest <= edge, 255, 0).astype(np.uint8)


def shade(rng: Rng, colours) -> Colour:
    return np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.1) + rng.uniform(-10, 10, 3)


def shifted(rng: Rng, x: np.ndarray, y: np.ndarray, cells: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the noise tile somewhere inside it, where it has no seam; at most 110 cells to the height."""
    return x * cells + rng.uniform(80, 170), y * cells + rng.uniform(80, 170)


def texture(rng: Rng, x: np.ndarray, y: np.ndarray, colour: Colour, strength: float) -> np.ndarray:
    """Blotches and fine relief, [H, W, 3]."""
    relief = noise("cloud", *shifted(rng, x, y, 60)) + noise("leaf", *shifted(rng, x, y, 100))
    return (1 + strength * relief)[..., None] * colour


def outline(rng: Rng, x: np.ndarray, y: np.ndarray, centre) -> np.ndarray:
    """The distance from `centre`, [H, W], in units of the radius of an irregular form in that direction."""
    turn, long = rng.uniform(0, pi), rng.uniform(1, 1.5)
    dx, dy = x - centre[0], y - centre[1]
    along, across = (dx * cos(turn) + dy * sin(turn)) / long, dy * cos(turn) - dx * sin(turn)
    angle, radius = np.arctan2(across, along), np.ones_like(along)
    for waves in range(1, 8):
        radius = radius + rng.uniform(0, 0.35) / waves * np.cos(waves * angle + rng.uniform(0, 2 * pi))
    ragged = 1 + rng.uniform(0.1, 0.4) * noise("cloud", *shifted(rng, x, y, 60))
    return np.hypot(along, across) / radius.clip(0.3) * ragged


def pigment(rng: Rng, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two or three colours in clouds, with a fine net of lines, [H, W, 3]."""
    colours = texture(rng, x, y, shade(rng, PIGMENT), 0.25)
    for _ in range(rng.integers(1, 3)):
        cloud = (2 * noise("cloud", *shifted(rng, x, y, 80)) + 0.3).clip(0, 1)[..., None]
        colours = colours + (shade(rng, PIGMENT) - colours) * cloud
    return colours


def draw_hairs(picture: Image.Image, rng: Rng, count: int) -> None:
    """Thin dark arcs across skin and lesion."""
    brush, colour, t = ImageDraw.Draw(picture), to_pixel(grey(rng, 25, 80, 6)), np.linspace(0, 1, 12)[:, None]
    for _ in range(count):
        start, bend, end = rng.uniform(-0.1, 1.1, (3, 2)) * picture.size
        bend = (start + end + bend) / 3
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        brush.line([tuple(point) for point in points.tolist()], colour, rng.integers(1, 3))


def draw_ruler(picture: Image.Image, rng: Rng) -> None:
    """The marks of a scale along the upper or lower edge, every fifth one longer."""
    brush, step, upper = ImageDraw.Draw(picture), picture.height / rng.uniform(14, 22), rng.random() < 0.5
    for i in range(int(picture.width / step)):
        length = picture.height * (0.1 if i % 5 == 0 else 0.05)
        ends = (0, length) if upper else (picture.height - length, picture.height)
        brush.line([(step * (i + 0.5), ends[0]), (step * (i + 0.5), ends[1])], (35, 32, 34))


def draw_bubbles(picture: Image.Image, rng: Rng) -> None:
    """Air in the gel: bright rings with a spot of light."""
    brush = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 9)):
        u, v = rng.uniform(0, 1, 2) * picture.size
        radius = picture.height * rng.uniform(0.015, 0.06)
        brush.line([(u + radius * c, v + radius * s) for c, s in (*circle(18), *circle(18)[:2])], (235, 225, 218))
        brush.ellipse([u - radius / 2, v - radius / 2, u - radius / 4, v - radius / 4], (250, 248, 245))


def expose(picture: Image.Image, rng: Rng, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Blur, a lamp to one side, the dark corners of the round lens (no lesion), noise; [H, W, 3] uint8."""
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8))), np.float32)
    light = rng.uniform(0.9, 1.1) + rng.uniform(-0.2, 0.2) * x + rng.uniform(-0.2, 0.2) * y
    lens = rng.uniform(0.62, 0.72) if rng.random() < 0.4 else 1.0  # its radius: within the picture or beyond
    light = light * (1 - (np.hypot(x, y) - lens) * 12).clip(0.08, 1) * (1 - 0.25 * (x * x + y * y))
    grains = rng.normal(0, rng.uniform(1, 4), soft.shape)
    return (soft * light[..., None] + grains).clip(0, 255).astype(np.uint8)
