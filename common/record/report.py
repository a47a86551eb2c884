"""The result of a run: result.json, the closing lines, and the report of the ModelZoo scripts."""

from pathlib import Path
from typing import NamedTuple

from common.device.world import World, device_name
from common.record.files import write_atomically


class Title(NamedTuple):
    """What a run is called in its report.

    reported_scores: what the closing lines and the report call a score -> its name, as the original scripts have it:
    {"Train Accuracy": "miou"} prints `Final Train Accuracy : 0.7` and writes `TrainAccuracy = 0.7`. Without it, and
    for scores of which it names none, "Train Accuracy" is the first score.
    """

    network: str
    purpose: str = "acc"  # 'acc' (full training), 'perf' (no score is taken) or 'eval'
    reported_scores: dict[str, str] | None = None

    def case(self, images_per_step: int, world: World) -> str:
        """The ModelZoo's name of the run."""
        return f"{self.network}_bs{images_per_step}_{world.size}p_{self.purpose}"

    def reported(self, scores: dict[str, float]) -> dict[str, float | None]:
        """Scores under the names of the original scripts."""
        if not self.reported_scores or (scores and not set(self.reported_scores.values()) & set(scores)):
            return {"Train Accuracy": next(iter(scores.values()), None)}
        return {shown: scores.get(name) for shown, name in self.reported_scores.items()}


def closing_lines(result: dict, title: Title) -> list[str]:
    """The last lines of a run, from what result.json holds."""
    scores = {name: result[name] for name in result["scores"]}
    return [
        "------------------ Final result ------------------",
        f"Final Performance images/sec : {_or_na(result['images_per_second'], '.2f')}",
        *(f"Final {name} : {_or_na(score, '.4f')}" for name, score in title.reported(scores).items()),
        f"E2E Training Duration sec : {result['duration_seconds']:.0f}",
    ]


def write_report(result: dict, title: Title, images_per_step: int, world: World) -> None:
    """The report of the ModelZoo scripts: the same keys in the same order, from the same numbers as result.json."""
    rate, scores = result["images_per_second"], {name: result[name] for name in result["scores"]}
    report = {
        "Network": result["network"],
        "RankSize": world.size,
        "BatchSize": images_per_step,
        "DeviceType": device_name(world.device),
        "CaseName": result["case"],
        "ActualFPS": _or_na(rate, ".2f"),
        "TrainingTime": _or_na(rate and 1000 * images_per_step / rate, ".2f"),  # milliseconds of one step
        **{name.replace(" ", ""): _or_na(score, ".4f") for name, score in title.reported(scores).items()},
        "ActualLoss": _or_na(result["loss"], ".4f"),
        "E2ETrainingTime": f"{result['duration_seconds']:.0f}",
    }
    text = "".join(f"{key} = {value}\n" for key, value in report.items())
    path = Path(result["output_dir"]) / f"{result['case']}.log"
    write_atomically(path, lambda file: file.write(text.encode()))


def _or_na(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
