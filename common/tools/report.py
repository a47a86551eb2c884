"""Write the page of a run anew, or one that compares several.

    python3 -m common.tools.report RUN [RUN ...] [--output FILE]

RUN is the output folder of a run; of several, each may also be a folder of runs that differ in their seeds (train.py
--seeds 3). The page of one is report.html in its folder, unless --output names another file; several need --output.
It needs the packages of common/requirements-report.txt.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import argparse

from common.args import Parser
from common.device.exits import exit_codes
from common.errors import InputError
from common.record.folder import RUN_MARK
from common.record.spread import read_group
from common.report.page import NAME, check_packages, comparison_page, run_page, write_page
from common.report.reading import read_record


def write(runs: list[Path], output: Path | None) -> Path:
    """The file that was written. Raises InputError for a folder without a run, and where nothing can be written."""
    check_packages()
    if output and output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file, such as {output / NAME}")
    if output and output.suffix not in (".html", ".htm"):  # a file of a run is soon named by mistake
        raise InputError(f"--output {output} is no name of a page; end it in .html")
    if len(runs) == 1 and (runs[0] / RUN_MARK).is_file():
        path, text = output or runs[0] / NAME, run_page(read_record(runs[0]))
    else:
        groups = [read_group(run) for run in runs]
        if output is None:
            number = sum(len(group.scores) for group in groups)
            raise InputError(f"{number} runs, and no file for their comparison; give --output FILE")
        folders = [[run] if (run / RUN_MARK).is_file() else _below(run) for run in runs]
        path, text = output, comparison_page(groups, {str(run): read_record(run) for each in folders for run in each})
    try:
        return write_page(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file with --output") from error


def _below(folder: Path) -> list[Path]:
    return sorted(mark.parent for mark in folder.glob(f"*/{RUN_MARK}"))


def main(argv: list[str] | None = None) -> None:
    """Write it, and print where."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="an output folder, or a folder of several")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the HTML file to write")
    args = parser.parse_args(argv)
    with exit_codes():
        print(write(args.runs, args.output))


if __name__ == "__main__":
    main()
