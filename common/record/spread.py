"""Several runs of one recipe: their scores side by side, their mean, and whether a difference is more than chance.

A group is a folder of runs that differ in their seeds (`--seeds`), or one run.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.flags import ABOUT_VALUES, OF_ONE_PROCESS
from common.record.folder import RUN_MARK
from common.record.past import read_json, read_rows

# What may differ between runs of one group, and is no part of a recipe.
NO_RECIPE = OF_ONE_PROCESS | ABOUT_VALUES | {"seed", "seeds", "dry_run"}
BEYOND = 2.0  # standard errors of a difference, from which on it is called more than chance


class Group(NamedTuple):
    """Runs of one recipe."""

    name: str
    values: dict[str, object]  # flags of its first run
    scores: list[dict[str, float]]  # of the last evaluation of each run; per class as "IoU <class>"
    scored_on: dict[str, object]  # of its first run: what says which pixels the scores are of


def read_group(path: Path) -> Group:
    """A run, or the runs in the folders below. Raises InputError for a folder without a run that was scored."""
    runs = [path] if (path / RUN_MARK).is_file() else sorted(mark.parent for mark in path.glob(f"*/{RUN_MARK}"))
    if not runs:
        raise InputError(f"{path} holds no run and no folders of runs; name an --output_dir of train.py")
    values = [read_json(run / RUN_MARK).get("values") for run in runs]
    for run, known in zip(runs, values, strict=True):
        if not isinstance(known, dict):
            raise InputError(f"{run} holds no run (no readable {RUN_MARK}); name an --output_dir of train.py")
    for run, other in zip(runs[1:], values[1:], strict=True):
        if different := recipe_differences(values[0], other):
            raise InputError(
                f"{run} and {runs[0]} are of other recipes (--{', --'.join(different)}), of which a mean says nothing; "
                "name each run for itself"
            )
    rows = [last_evaluation(run) for run in runs]
    return Group(
        str(path), values[0], [scores_of(run, row) for run, row in zip(runs, rows, strict=True)], _scored_on(rows[0])
    )


def last_evaluation(run: Path) -> dict:
    """Its row in metrics.jsonl. Raises InputError where there is none."""
    row = None
    for each in read_rows(run):
        row = each if each.get("kind") == "eval" else row
    if row is None:
        raise InputError(f"{run} has no evaluation in metrics.jsonl; name a run that was scored (--validate)")
    return row


def scores_of(run: Path, row: dict) -> dict[str, float]:
    """The scores of a row of an evaluation of this run; those that are not finite are null there, and left out."""
    names = read_json(run / "result.json").get("scores") or [name for name in row if name in ("miou", "jaccard")]
    scores = {name: row[name] for name in names if isinstance(row.get(name), float)}
    return scores | {f"IoU {name}": iou for name, iou in row.get("class_iou", {}).items() if iou is not None}


def _scored_on(row: dict) -> dict[str, object]:
    """Pictures, how they are seen, and how many pixels each class has in their truth; {} of earlier versions."""
    details = row.get("details") or {}
    protocol, classes = details.get("protocol") or {}, details.get("classes") or {}
    pixels = {name: counts.get("truth_pixels") for name, counts in classes.items()}
    return {name: protocol.get(name) for name in ("split", "images", "sizes")} | {"pixels": pixels} if protocol else {}


def other_pixels(one: Group, other: Group) -> str:
    """What makes scores of two groups those of different pixels, in words; '' where nothing does or is known to."""
    before, now = one.scored_on, other.scored_on
    for name in before if now else ():
        if before[name] != now[name]:
            what = "its labels differ" if name == "pixels" else f"{name}: {before[name]}, {now[name]}"
            return f"scored on other pixels than {one.name} ({what}): the scores cannot be compared"
    return ""


def names_of_scores(found: Sequence[Mapping[str, "Mean"]]) -> list[str]:
    """Those of all groups, each once; scores before classes."""
    names = dict.fromkeys(name for group in found for name in group)
    return sorted(names, key=lambda name: name.startswith("IoU "))


def recipe_differences(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Flags of two runs that are not alike: name -> the two values."""
    names = [name for name in {**one, **other} if name not in NO_RECIPE]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


class Mean(NamedTuple):
    """Of one score of a group."""

    mean: float
    deviation: float  # of a sample: nan for a single run
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.runs > 1 else "")


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard deviation (of a sample, n - 1)."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Mean(statistics.fmean(values), deviation, len(values))


def means(group: Group) -> dict[str, Mean]:
    """Of each score that all runs of the group have."""
    names = [name for name in group.scores[0] if all(name in scores for scores in group.scores)]
    return {name: mean_of([scores[name] for scores in group.scores]) for name in names}


def in_words(before: Mean, now: Mean) -> str:
    """The difference of two means, and whether it exceeds twice its standard error (Welch)."""
    difference = now.mean - before.mean
    text = f"{round(difference, 4) + 0.0:+.4f}"  # no -0.0000
    if before.runs < 2 or now.runs < 2:
        return text
    error = math.sqrt(before.deviation**2 / before.runs + now.deviation**2 / now.runs)
    return f"{text} {'beyond' if abs(difference) > BEYOND * error else 'within'} the spread"


def table(groups: Sequence[Group]) -> list[str]:
    """A line for each score: mean and deviation of each group, and what is otherwise than in the first."""
    found = [means(group) for group in groups]
    rows = [("score", *(group.name for group in groups))]
    for name in names_of_scores(found):
        first = found[0].get(name)
        cells = [str(first or "-")]
        for mean in [other.get(name) for other in found[1:]]:
            cells.append(f"{mean}  ({in_words(first, mean)})" if first and mean else str(mean or "-"))
        rows.append((name, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
