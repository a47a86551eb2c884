"""Write the train ids of a Cityscapes folder, *_labelTrainIds.png, and the lists train.txt, val.txt and test.txt.

Training here reads the label ids of the download as they are; this is for programs that want train ids. They come from
*_labelIds.png through the label table or, where these are missing, from the polygons in *_polygons.json. Train ids that
are there already are left alone: a run that was interrupted is continued by the same command.
"""

import json
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from PIL import Image, ImageDraw

from common import IGNORE_INDEX
from common.args import Parser
from common.data.cityscapes import LABEL_IDS, LABELS
from common.data.labels import read_label
from common.errors import InputError
from common.record.files import write_atomically
from common.terminal import progress

SPLITS = ("train", "val", "test")
SOURCES = ("_labelIds.png", "_polygons.json")  # the first that a picture has is taken
TARGET = "_labelTrainIds.png"
TRAIN_ID_OF_NAME = {label.name: label.train_id for label in LABELS} | {"license plate": None}  # None: is not drawn


def convert(root: Path, gt_dir: str = "gtFine", out_dir: Path | None = None, processes: int = 1) -> str:
    """Write what is missing; returns a line that says what was done. InputError for a folder or a file that is wrong.

    The train ids appear beside their sources, the lists in `out_dir` (or `root`): a line `city/name` for each picture.
    """
    if processes < 1:
        raise InputError(f"--nproc {processes}: give the number of processes, 1 or more")
    labels_dir = root / gt_dir
    sources = {split: find_sources(labels_dir / split) for split in SPLITS if (labels_dir / split).is_dir()}
    if not any(sources.values()):
        missing = f"*{SOURCES[0]} or *{SOURCES[1]} in the city folders of {labels_dir}/{{{','.join(SPLITS)}}}"
        raise InputError(
            f"no {missing if labels_dir.is_dir() else f'folder {labels_dir}'}; give the folder that "
            "gtFine_trainvaltest.zip was unpacked into, and the folder of the labels in it with --gt_dir"
        )
    lists_dir = out_dir or root
    try:
        lists_dir.mkdir(parents=True, exist_ok=True)  # now rather than after an hour
    except OSError as error:
        raise InputError(f"--out_dir {lists_dir} cannot be made ({error.strerror}); give a folder") from error
    todo = [path for paths in sources.values() for stem, path in paths.items() if not target_of(stem).exists()]
    if processes == 1:
        for path in progress(todo, "converting", len(todo), "file"):
            convert_file(path)
    else:
        with ProcessPoolExecutor(processes, initializer=_start_worker) as pool:
            try:
                for _ in progress(pool.map(convert_file, todo), "converting", len(todo), "file"):
                    pass
            except BrokenProcessPool as error:
                raise InputError(
                    "one of the processes was killed, for want of memory perhaps; the same command goes on, with fewer "
                    f"than --nproc {processes}"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for split, paths in sources.items():
        names = sorted(str(stem.relative_to(labels_dir / split)).rpartition("_")[0] for stem in paths)
        text = "".join(f"{name}\n" for name in names)
        write_atomically(lists_dir / f"{split}.txt", lambda file, text=text: file.write(text.encode()))
    total = sum(map(len, sources.values()))
    counts = ", ".join(f"{len(paths)} in {split}.txt" for split, paths in sources.items())
    return f"{len(todo)} label files written, {total - len(todo)} were there; {counts}"


def find_sources(folder: Path) -> dict[Path, Path]:
    """The pictures of a split by what their files' names begin with, each with the file that it is converted from."""
    found: dict[Path, Path] = {}
    for suffix in reversed(SOURCES):
        found |= {Path(str(path).removesuffix(suffix)): path for path in folder.glob(f"*/*{suffix}")}
    return dict(sorted(found.items()))


def target_of(stem: Path) -> Path:
    return Path(f"{stem}{TARGET}")


def convert_file(source: Path) -> None:
    """Write the train ids beside their source, a *_labelIds.png or a *_polygons.json file, in one piece."""
    suffix = next(suffix for suffix in SOURCES if source.name.endswith(suffix))
    is_drawn = suffix == "_polygons.json"
    train_ids = draw_polygons(source) if is_drawn else Image.fromarray(read_label(source, LABEL_IDS))
    target = target_of(Path(str(source).removesuffix(suffix)))
    write_atomically(target, lambda file: train_ids.save(file, "PNG"))


def draw_polygons(source: Path) -> Image.Image:
    """The train ids (mode L) of a polygon file: later polygons cover earlier ones, the rest is IGNORE_INDEX."""
    try:
        annotation = json.loads(source.read_text(encoding="utf-8"))
        canvas = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), IGNORE_INDEX)
        pen = ImageDraw.Draw(canvas)
        for thing in annotation["objects"]:
            if not thing.get("deleted"):
                train_id = train_id_of(thing["label"])
                if train_id is not None:
                    pen.polygon([tuple(point) for point in thing["polygon"]], fill=train_id)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"cannot draw the polygons of {source} ({reason}); unpack or download it again") from error
    return canvas


def train_id_of(name: str) -> int | None:
    """The train id of a label's name, None for one that is not drawn; a group counts as one of its things."""
    if name not in TRAIN_ID_OF_NAME:
        name = name.removesuffix("group")
    if name not in TRAIN_ID_OF_NAME:
        raise ValueError(f"the label '{name}' is not in the label table")
    return TRAIN_ID_OF_NAME[name]


def _start_worker() -> None:
    """Leave Ctrl-C to the process that started this one, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def main() -> int:
    """Convert what the command line says; returns the exit code."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder of the data set; it holds gtFine/")
    parser.add_argument("--gt_dir", default="gtFine", help="folder of the labels in it; default: gtFine")
    parser.add_argument("-o", "--out_dir", type=Path, help="folder for the lists; default: that of the data set")
    parser.add_argument("--nproc", type=int, default=1, help="how many processes; default: 1")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(convert(args.root, args.gt_dir, args.out_dir, args.nproc))
    except (InputError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
