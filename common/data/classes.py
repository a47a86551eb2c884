"""The classes of one's own data: classes.json, what annotation tools write in its place, or the masks themselves.

    {"classes": [{"name": "road", "ids": [0], "colour": [128, 64, 128]}, ...], "ignore_ids": [255]}

The place in the list is the class in training; `ids` are the values that mean it in label files, and `colour` the one
that means it in masks of colours, and in pictures to look at. Where masks of colours have one that counts nowhere, it
is in a list "ignore_colours".
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

import numpy as np

from common import IGNORE_INDEX
from common.data.labels import Colour, LabelTable
from common.errors import InputError
from common.record.files import write_atomically

CLASSES_FILE = "classes.json"
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
MOST_CLASSES = IGNORE_INDEX - 1  # 254 is what the reader of labels calls a value without a class
# More than so many colours, or than so many values up to such a high one, are no classes that somebody has drawn.
MOST_FOUND_COLOURS, MOST_FOUND_VALUES, HIGHEST_FOUND_VALUE = 64, 16, 200
NO_LETTERS = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control characters, halves of one, ends of lines
FORM = '{"classes": [{"name": "road", "ids": [0], "colour": [128, 64, 128]}, ...], "ignore_ids": [255]}'


class OwnClass(NamedTuple):
    """A class: its name, the values that mean it in label files, and its colour."""

    name: str
    ids: tuple[int, ...]
    colour: Colour


class Classes(NamedTuple):
    """The classes of a data set, in the order of training, and the values that count nowhere."""

    classes: tuple[OwnClass, ...]
    ignore_ids: tuple[int, ...] = (IGNORE_INDEX,)
    ignore_colours: tuple[Colour, ...] = ()  # of masks of colours

    @property
    def names(self) -> tuple[str, ...]:
        """By class."""
        return tuple(one.name for one in self.classes)

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Colours to look at: those of the masks, unless these are grey levels, which nobody can tell apart."""
        greys = all(len(set(one.colour)) == 1 for one in self.classes)
        if greys and self.classes[-1].colour != WHITE:
            return tuple(map(distinct_colour, range(len(self.classes))))
        return tuple(one.colour for one in self.classes)

    def table(self) -> LabelTable:
        """How label files are read: ids, a palette that is compared with the colours, or colours."""
        train_ids = np.full(256, IGNORE_INDEX, np.uint8)
        colours: dict[int, Colour] = {}
        for train_id, one in enumerate(self.classes):
            train_ids[list(one.ids)] = train_id
            colours |= dict.fromkeys(one.ids, one.colour)
        by_colour = {one.colour: train_id for train_id, one in enumerate(self.classes)}
        by_colour |= dict.fromkeys(self.ignore_colours, IGNORE_INDEX)
        return LabelTable(train_ids, frozenset(colours) | frozenset(self.ignore_ids), colours, by_colour, True)


def distinct_colour(class_id: int) -> Colour:
    """A colour for each class id, as PASCAL VOC gives them: the bits of the id, dealt to red, green and blue."""
    return tuple(
        sum((class_id >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )


def read_classes(path: str | Path) -> Classes:
    """The classes of a classes.json. Raises InputError, naming the file and the entry, for what is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} ({' '.join(str(error).split())}); it must hold {FORM}") from error
    try:
        classes = tuple(
            OwnClass(_name(entry["name"]), tuple(map(_byte, entry["ids"])), _colour(entry, number))
            for number, entry in enumerate(content["classes"])
        )
        ignored = tuple(map(_byte, content.get("ignore_ids", _ignored(classes))))
        ignored_colours = tuple(_colour({"colour": colour}, 0) for colour in content.get("ignore_colours", []))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} holds something else than classes ({error!r:.100}); it must hold {FORM}") from error
    return checked(Classes(classes, ignored, ignored_colours), path)


def write_classes(path: str | Path, classes: Classes) -> None:
    """Write a classes.json that `read_classes` reads, one class in each line."""
    lines = [
        json.dumps({"name": one.name, "ids": list(one.ids), "colour": list(one.colour)}, ensure_ascii=False)
        for one in classes.classes
    ]
    listed = ",\n  ".join(lines)
    ignored = f'"ignore_ids": {json.dumps(list(classes.ignore_ids))}'
    if classes.ignore_colours:
        ignored += f', "ignore_colours": {json.dumps(list(classes.ignore_colours))}'
    text = f'{{"classes": [\n  {listed}\n], {ignored}}}\n'
    write_atomically(Path(path), lambda file: file.write(text.encode()))


def checked(classes: Classes, path: str | Path) -> Classes:
    """The classes, unless they cannot be: InputError, naming the file that they are of."""
    names, count = classes.names, len(classes.classes)
    if not 2 <= count <= MOST_CLASSES:
        raise InputError(f"{path} holds {count} classes, and 2 to {MOST_CLASSES} can be trained; list all of them")
    ids = [value for one in classes.classes for value in one.ids]
    for what, values in (
        ("name", names),
        ("id", [*ids, *classes.ignore_ids]),
        ("colour", [*classes.ignore_colours, *(one.colour for one in classes.classes)]),
    ):
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise InputError(
                f"{path} has the {what} {twice[0]} twice; give it to one class, or, where two are to be one, "
                "list the ids of both in one class"
            )
    if empty := [one.name for one in classes.classes if not one.ids]:
        raise InputError(
            f'{path} has no ids for the class {empty[0]}; give the values that mean it, such as "ids": [1]'
        )
    return classes


def _name(value: object) -> str:
    name = value.strip() if isinstance(value, str) else ""
    if not name or any(category(letter) in NO_LETTERS for letter in name):
        raise ValueError(f"{value!r} is no name of one line")
    return name


def _byte(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"{value!r} is not a whole number from 0 to 255")
    return value


def _colour(entry: dict, number: int) -> Colour:
    colour = tuple(map(_byte, entry.get("colour") or distinct_colour(number)))
    if len(colour) != 3:
        raise ValueError(f"{list(colour)} is not a colour of red, green and blue")
    return colour


# ---- what annotation tools write


def find_classes(folders: Iterable[Path]) -> tuple[Classes, Path] | None:
    """The classes of the first of these folders that says them, with the file; None where none does.

    A classes.json wins; then labelmap.txt (CVAT, segmentation mask 1.1), class_names.txt (labelme2voc),
    obj_class_to_machine_color.json (Supervisely, masks) and _classes.csv (Roboflow, PNG masks).
    Raises InputError for a file that is there and cannot be read.
    """
    folders = list(folders)
    for name, read in ((CLASSES_FILE, read_classes), *_EXPORTS.items()):
        for folder in folders:
            if (path := folder / name).is_file():
                return read(path), path
    return None


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); export again, or write a {CLASSES_FILE}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _unlike(path: Path, line: object, form: str) -> InputError:
    return InputError(f"{path} holds {line!r:.80}, and '{form}' is read; export again, or write a {CLASSES_FILE}")


def _of_labelmap(path: Path) -> Classes:
    """CVAT: 'name:red,green,blue:parts:actions' in each line; masks are of these colours."""
    classes = []
    for number, line in enumerate(_lines(path)):
        try:
            name, colour, *_ = line.split(":")
            entry = {"colour": [int(part) for part in colour.split(",")]}
            classes.append(OwnClass(_name(name), (number,), _colour(entry, number)))
        except ValueError as error:
            raise _unlike(path, line, "name:red,green,blue::") from error
    return checked(Classes(tuple(classes)), path)


def _of_class_names(path: Path) -> Classes:
    """labelme2voc: a name in each line, the first of which is _background_; masks hold indices of VOC's palette."""
    names = [name for name in _lines(path) if name != "__ignore__"]  # is drawn as 255
    return checked(Classes(_numbered(names)), path)


def _of_machine_colours(path: Path) -> Classes:
    """Supervisely: {name: [n, n, n]}, grey levels of which 0 is left to the background."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        colours = {_name(name): _colour({"colour": value}, 0) for name, value in content.items()}
        if any(len(set(colour)) > 1 for colour in colours.values()):
            raise ValueError("a colour that is no grey level")
    except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _unlike(path, error, '{"name": [1, 1, 1], ...}') from error
    classes = [OwnClass(name, (colour[0],), colour) for name, colour in colours.items()]
    if not any(0 in one.ids for one in classes):
        classes.insert(0, OwnClass("background", (0,), (0, 0, 0)))
    return checked(Classes(tuple(classes), _ignored(classes)), path)


def _of_csv(path: Path) -> Classes:
    """Roboflow: 'Pixel Value, Class', and so on in each line."""
    classes = []
    for number, row in enumerate(csv.reader(_lines(path)[1:], skipinitialspace=True)):
        try:
            value, name = row
            classes.append(OwnClass(_name(name), (_byte(int(value)),), distinct_colour(number)))
        except ValueError as error:
            raise _unlike(path, ", ".join(row), "1, name") from error
    return checked(Classes(tuple(classes), _ignored(classes)), path)


_EXPORTS = {
    "labelmap.txt": _of_labelmap,
    "class_names.txt": _of_class_names,
    "obj_class_to_machine_color.json": _of_machine_colours,
    "_classes.csv": _of_csv,
}


def _numbered(names: Sequence[str]) -> tuple[OwnClass, ...]:
    return tuple(OwnClass(name, (number,), distinct_colour(number)) for number, name in enumerate(names))


def _ignored(classes: Sequence[OwnClass]) -> tuple[int, ...]:
    """255, unless it is a class."""
    return () if any(IGNORE_INDEX in one.ids for one in classes) else (IGNORE_INDEX,)


# ---- the masks themselves


def classes_of_masks(values: Iterable[int], colours: Iterable[Colour], where: str | Path) -> Classes:
    """Classes as masks show them, named after their value or colour.

    values: those that are in masks of grey or of a palette. colours: those that are in masks of colours; one of the
    two is empty. 0 and 255 alone, or black and white, are background and foreground; otherwise 255 is ignored.
    Raises InputError, naming `where`, for masks that show no two classes, or more than can be.
    """
    values, colours = sorted(set(values)), sorted(set(colours))
    if values and colours:
        raise InputError(
            f"the masks of {where} are of ids and of colours; convert them to one kind, or write a {CLASSES_FILE}"
        )
    counted = [value for value in values if value != IGNORE_INDEX]
    if len(colours) > MOST_FOUND_COLOURS or (len(counted) > MOST_FOUND_VALUES and counted[-1] > HIGHEST_FOUND_VALUE):
        what = f"{len(colours)} colours" if colours else f"{len(values)} values up to {values[-1]}"
        raise InputError(
            f"the masks of {where} show {what}, as those with smoothed edges do; save masks without smoothing, or "
            f"write a {CLASSES_FILE} if all of them are classes"
        )
    if colours:
        usual = {BLACK: "background"} | ({WHITE: "foreground"} if colours == [BLACK, WHITE] else {})
        named = tuple(
            OwnClass(usual.get(colour, "colour_{:02x}{:02x}{:02x}".format(*colour)), (n,), colour)
            for n, colour in enumerate(colours)
        )
        return checked(Classes(named, _ignored(named)), where)
    if values == [0, IGNORE_INDEX]:
        foreground = OwnClass("foreground", (IGNORE_INDEX,), WHITE)
        return Classes((OwnClass("background", (0,), BLACK), foreground), ())
    named = tuple(OwnClass(f"class_{value}", (value,), distinct_colour(value)) for value in counted)
    return checked(Classes(named), where)
