"""report.html: one file that tells of a run, or compares several, to be read without a network."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common.args import FLAG_KINDS, format_value
from common.errors import InputError
from common.recipe import recipe
from common.record.files import write_atomically
from common.record.numbers import NO_CURVES
from common.record.spread import Group, in_words, means, names_of_scores, other_pixels, recipe_differences
from common.report.charts import Chart, chart
from common.report.pictures import pictures
from common.report.reading import Record
from common.values import size

NAME = "report.html"  # in the folder of the run
PACKAGES = ("jinja2", "matplotlib")
ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 200  # of train.log


def missing_packages() -> list[str]:
    """What a page needs and is not installed, or cannot be imported."""
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def install_command() -> str:
    """What installs them, as it is given in the present folder."""
    return f"pip install -r {os.path.relpath(ROOT / 'common' / 'requirements-report.txt')}"


def check_packages() -> None:
    """Raise InputError where the packages are missing."""
    if missing := missing_packages():
        raise InputError(f"a report needs {' and '.join(missing)}: {install_command()}")


def write_page(path: Path, text: str) -> Path:
    """Write it whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    return path


# ---- one run


def run_page(record: Record) -> str:
    """The HTML of one run."""
    matrix, examples, first_batch = pictures(record.folder)
    return _rendered(
        "run.html",
        record=record,
        title=record.result.get("case") or record.folder.resolve().name,
        charts=_charts({"": record}),
        matrix=matrix,
        examples=examples,
        first_batch=first_batch,
        recipe=recipe(record.values),
        log=record.lines[-MOST_LINES:],
    )


def _charts(records: dict[str, Record]) -> list[Chart]:
    """The curves of each record: of one, its terms and scores together; of several, one chart for each quantity."""
    alone = len(records) == 1
    rows = [row for record in records.values() for row in record.training]
    terms = ["loss", *_names(rows, lambda name: name.startswith("loss_") and name != "loss_scale")]
    names = _names([row for record in records.values() for row in record.evaluations], lambda name: True)
    scores = [name for name in names if "loss" not in name]
    wanted = [("Loss", "training", terms if alone else terms[:1], False)]
    wanted += [
        ("Learning rate", "training", ["lr"], True),
        ("Images per second", "training", ["images_per_second"], True),
    ]
    wanted += [("Share of time waiting for data", "training", ["data_wait_share"], True)]
    each = [("Scores", scores)] if alone else [(f"Score {name}", [name]) for name in scores]
    wanted += [(title, "evaluations", columns, True) for title, columns in each]
    wanted += [("Loss of the evaluation", "evaluations", [name for name in names if "loss" in name], False)]
    charts = []
    for title, kind, columns, from_zero in wanted:
        curves = {
            " ".join(filter(None, (label, column if len(columns) > 1 or alone else ""))): _points(record, kind, column)
            for label, record in records.items()
            for column in columns
        }
        charts.append(chart(title, curves, from_zero))
    return [each for each in charts if each]


def _names(rows: Iterable[dict], wanted: Callable[[str], bool]) -> list[str]:
    return [
        name for name in dict.fromkeys(name for row in rows for name in row if name not in NO_CURVES) if wanted(name)
    ]


def _points(record: Record, kind: str, column: str) -> list[tuple[float, float]]:
    return [(row["step"], row[column]) for row in getattr(record, kind) if "step" in row and column in row]


# ---- several runs


def comparison_page(groups: Sequence[Group], records: dict[str, Record]) -> str:
    """The HTML of several groups of runs, each against the first; records: of all runs, by what they are called."""
    found = [means(group) for group in groups]
    rows = []
    for name in names_of_scores(found):
        first, *others = (mean.get(name) for mean in found)
        said = [(str(mean), in_words(first, mean) if first else "") if mean else None for mean in others]
        changes = [round(mean.mean - first.mean, 4) if first and mean else None for mean in others]
        rows.append((name.removeprefix("IoU "), name.startswith("IoU "), str(first or "-"), said, changes))
    first_environment = next(iter(records.values())).environment
    environments = {
        label: {
            name: (first_environment.get(name), value)
            for name, value in record.environment.items()
            if name != "started" and first_environment.get(name) != value
        }
        for label, record in list(records.items())[1:]
    }
    return _rendered(
        "comparison.html",
        title="Comparison of runs",
        groups=groups,
        records=records,
        warnings=[f"{each.name} is {words}" for each in groups[1:] if (words := other_pixels(groups[0], each))],
        charts=_charts(records),
        scores=[row for row in rows if not row[1]],
        classes=[row for row in rows if row[1]],
        recipes={
            group.name: {
                name: tuple(shown(value, name) for value in values)
                for name, values in recipe_differences(groups[0].values, group.values).items()
            }
            for group in groups[1:]
        },
        environments=environments,
    )


# ---- templates


def _rendered(template: str, **content) -> str:
    """Values are escaped; what is a number is written with few digits."""
    import jinja2

    folder = Path(__file__).resolve().parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "bytes": _bytes, "clock": _clock, "value": shown, "name": _name}
    return environment.get_template(template).render(**content)


def shown(value: object, name: str = "") -> str:
    """A value in a reader's words. name: of the flag that it belongs to."""
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_value(tuple(value) if isinstance(value, list) and FLAG_KINDS.get(name) is size else value)


def _name(text: object) -> str:
    """A name that may go on in the next line after an underscore, and is not broken elsewhere for lack of room."""
    from markupsafe import Markup, escape

    return escape(text).replace("_", Markup("_<wbr>"))


def _number(value: object, digits: int = 4) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
