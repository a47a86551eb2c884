"""Curves as SVG that stands in a page: text as text, colours of the page, which has a light and a dark look."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST_POINTS = 500  # of a curve; a longer one keeps every second, third, ... and the last
ROOM = 1.04  # times the largest value: the end of an axis
SERIES = 8  # colours in the style sheet of the page
# what Matplotlib draws with -> what the page has: it takes no names of CSS
INK, RULE = "#010203", "#010204"
COLOURS = [f"#0102{10 + number}" for number in range(SERIES)]
IN_THE_PAGE = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(COLOURS)
}
DASHES = ("-", "--", ":")  # where there are more curves than colours

Points = Sequence[tuple[float, float]]  # (step, value)


class Chart(NamedTuple):
    """A chart of the page; the legend is the page's, which escapes what users have named."""

    title: str
    svg: str
    legend: list[tuple[str, int]]  # (name, number of its colour)


def chart(title: str, curves: Mapping[str, Points], from_zero: bool = False) -> Chart | None:
    """The curves over the steps; None where no point is after a step. from_zero: the axis of values begins there."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    finite = {name: [point for point in points if _is_number(point[1])] for name, points in curves.items()}
    shown = {name: _thinned(points) for name, points in finite.items() if points}
    last = max((step for points in shown.values() for step, _ in points), default=0)
    if last == 0:  # of an evaluation alone
        return None
    style = {
        "svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.family": "sans-serif",
        "font.size": 9, "text.color": INK, "axes.edgecolor": RULE, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "figure.facecolor": "none", "axes.facecolor": "none",
        "axes.spines.right": False, "axes.formatter.limits": (-4, 5),
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(4.8, 2.6), layout="tight")
        axes = figure.add_subplot()
        for number, points in enumerate(shown.values()):
            steps, values = zip(*points, strict=True)
            dash = DASHES[number // SERIES % len(DASHES)]
            dot = "o" if len(points) < 15 else ""
            axes.plot(steps, values, color=COLOURS[number % SERIES], ls=dash, marker=dot, ms=3.5, lw=1.6)
        axes.grid(color=RULE, lw=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        # from the beginning of the run, and with room for the last point
        axes.set_xlim(0, last * ROOM)
        if from_zero:
            axes.set_ylim(0, max(value for points in shown.values() for _, value in points) * ROOM or 1)
        text = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(text, metadata=nothing)
    return Chart(title, _inline(text.getvalue(), title), [(name, at % SERIES) for at, name in enumerate(shown)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: Points) -> Points:
    every = -(-len(points) // MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _inline(svg: str, title: str) -> str:
    """The element alone, without its name spaces, whose names are addresses; its colours are those of the page."""
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    rest = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r"font-family: [^;\"]*(;|(?=\"))", "", rest)
    for drawn, ours in IN_THE_PAGE.items():
        rest = rest.replace(drawn, ours)
    word = re.sub(r"\W+", "-", title)  # names within a page are there once
    rest = re.sub(r'\bid="|(?<=url\()#|(?<=xlink:href=")#', lambda match: f"{match[0]}{word}-", rest)
    return f'<svg {box} role="img" aria-label="{word}">{rest.strip()}'
