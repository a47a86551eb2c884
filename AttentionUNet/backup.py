"""Copies of finished runs in test/backup/, as the original README promises them."""

import shutil
import sys
import tempfile
from pathlib import Path

from common.record.folder import RUN_MARK

FOLDER = Path(__file__).resolve().parent / "test" / "backup"
# preset -> folder in test/backup
COPIES = {
    "full_1p": "1p_full",
    "performance_1p": "1p_performance",
    "full_8p": "8p_full",
    "performance_8p": "8p_performance",
}


def copy_run(output_dir: str | Path, preset: str, folder: Path = FOLDER) -> Path | None:
    """Copy logs, result and best weights of a finished run; returns where to, or None for a preset that has no copy.

    The copy is made beside its place and renamed into it when it is whole; only then an older one is removed. A disk
    that is full, say, is reported: the run itself is complete.
    """
    if preset not in COPIES:
        return None
    target = folder / COPIES[preset]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=folder, ignore_cleanup_errors=True) as workshop:
            fresh = Path(workshop, "fresh")
            _copy_files(Path(output_dir), fresh)
            if target.exists():
                target.rename(Path(workshop, "old"))
            fresh.rename(target)
    except OSError as error:
        print(f"warning: the run could not be copied to {target} ({error})", file=sys.stderr)
        return None
    print(f"logs, result and best weights are copied to {target}")
    return target


def _copy_files(run: Path, folder: Path) -> None:
    reports = [report.name for report in run.glob("*.log")]  # with train.log
    for name in ("metrics.jsonl", RUN_MARK, "result.json", "checkpoints/best.pt", *reports):
        if (run / name).is_file():  # a run for the speed alone has no best weights
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, folder / name)
