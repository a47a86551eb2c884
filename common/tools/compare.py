"""Compare runs: what their recipes have otherwise, and whether their scores differ by more than chance.

    python3 -m common.tools.compare RUN RUN [...]

RUN is the output folder of a run, or a folder of runs that differ in their seeds (train.py --seeds 3). Scores are those
of the last evaluation of each run. Differences are to the first RUN. Where both have several seeds, one that exceeds
twice its standard error is called beyond the spread.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import argparse

from common.args import Parser, format_value
from common.device.exits import exit_codes
from common.record.spread import other_pixels, read_group, recipe_differences, table


def lines(paths: list[Path]) -> list[str]:
    """What is said of the runs. Raises InputError for a folder without one."""
    groups = [read_group(path) for path in paths]
    said = []
    for group in groups[1:]:
        differences = recipe_differences(groups[0].values, group.values)
        said.append(f"{group.name} against {groups[0].name}:{'' if differences else ' the same recipe'}")
        said += [
            f"  --{name}: {format_value(before)}, {format_value(now)}" for name, (before, now) in differences.items()
        ]
        if words := other_pixels(groups[0], group):
            said.append(f"warning: {group.name} is {words}")
    runs = ", ".join(f"{len(group.scores)} of {group.name}" for group in groups)
    return [*said, *table(groups), f"runs: {runs}"]


def main(argv: list[str] | None = None) -> None:
    """Print the comparison."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="an output folder, or a folder of several")
    with exit_codes():
        print(*lines(parser.parse_args(argv).runs), sep="\n")


if __name__ == "__main__":
    main()
