"""The page that a run writes of itself at its end."""

import logging
import os
import shlex
from pathlib import Path

from common.record.past import how_it_ended
from common.report.page import NAME, ROOT, install_command, missing_packages, run_page, write_page
from common.report.reading import read_record

NOT_WANTED = "NO_REPORT"  # an environment variable; while it is set, no run writes a page


def page_at_the_end(folder: Path) -> list[str]:
    """Write the page of a run that is complete and still holds its folder; a line that names it, or says why not.

    Nothing that goes wrong with the page is an error of the run.
    """
    if os.environ.get(NOT_WANTED):
        return []
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of the first look at the fonts nobody needs to hear
    if missing := missing_packages():
        tool = os.path.relpath(ROOT / "common" / "tools" / "report.py")
        afterwards = f"{install_command()}, then python3 {tool} {shlex.quote(str(folder))}"
        return [f"no {NAME}: it needs {' and '.join(missing)}; {afterwards}"]
    try:
        path = write_page(folder / NAME, run_page(read_record(folder, how_it_ended)))
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return [f"warning: {NAME} is not written ({said}); the run itself is complete"]
    return [f"scores, curves and pictures : {path}"]
