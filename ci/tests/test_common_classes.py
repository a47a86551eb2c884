"""Classes of one's own data: classes.json, the files of annotation tools, and masks in ids or colours."""

import json

import numpy as np
import pytest
from PIL import Image

from common.data.classes import classes_of_masks, find_classes, read_classes, write_classes
from common.data.labels import read_label
from common.errors import InputError

ROAD = {"name": "road", "ids": [7, 9], "colour": [128, 64, 128]}
SKY = {"name": "sky", "ids": [3], "colour": [70, 130, 180]}


def classes_of(folder, content):
    path = folder / "classes.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_classes(path)


def label_of(folder, values, classes, mode=None):
    path = folder / "mask.png"
    Image.fromarray(np.array(values, np.uint8), mode).save(path)
    return read_label(path, classes.table()).tolist()


def test_ids_of_a_class_may_be_several_and_others_count_nowhere(tmp_path):
    classes = classes_of(tmp_path, {"classes": [ROAD, SKY], "ignore_ids": [255, 0]})
    assert label_of(tmp_path, [[7, 9, 3], [0, 255, 7]], classes) == [[0, 0, 1], [255, 255, 0]]
    with pytest.raises(InputError, match=r"mask.png holds the values \[4\]"):
        label_of(tmp_path, [[4]], classes)


def test_masks_of_colours(tmp_path):
    content = {"classes": [ROAD, SKY], "ignore_colours": [[224, 224, 192]]}
    classes = classes_of(tmp_path, content)
    assert label_of(tmp_path, [[[70, 130, 180], [128, 64, 128], [224, 224, 192]]], classes) == [[1, 0, 255]]
    with pytest.raises(InputError, match=r"1 colours of no class, \(70, 130, 181\)"):
        label_of(tmp_path, [[[70, 130, 181], [128, 64, 128]]], classes)
    with pytest.raises(InputError, match="transparent"):
        label_of(tmp_path, [[[70, 130, 180, 0]]], classes)


def test_what_is_written_is_read(tmp_path):
    content = {"classes": [ROAD, SKY], "ignore_ids": [0], "ignore_colours": [[1, 2, 3]]}
    classes = classes_of(tmp_path, content)
    write_classes(tmp_path / "again.json", classes)
    assert read_classes(tmp_path / "again.json") == classes
    assert json.loads((tmp_path / "again.json").read_text()) == content


def test_255_is_ignored_unless_it_is_a_class(tmp_path):
    assert classes_of(tmp_path, {"classes": [ROAD, SKY]}).ignore_ids == (255,)
    white = {"name": "lesion", "ids": [255], "colour": [255, 255, 255]}
    classes = classes_of(tmp_path, {"classes": [{**SKY, "ids": [0]}, white]})
    assert classes.ignore_ids == ()
    assert label_of(tmp_path, [[0, 255]], classes) == [[0, 1]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "something else than classes"),
        ({"classes": [ROAD]}, "1 classes, and 2 to 254"),
        ({"classes": [ROAD, {**SKY, "ids": [7]}]}, "the id 7 twice"),
        ({"classes": [ROAD, {**SKY, "name": "road"}]}, "the name road twice"),
        ({"classes": [ROAD, {**SKY, "colour": [128, 64, 128]}]}, r"the colour \(128, 64, 128\) twice"),
        ({"classes": [ROAD, SKY], "ignore_ids": [3]}, "the id 3 twice"),
        ({"classes": [ROAD, {**SKY, "ids": []}]}, "no ids for the class sky"),
        ({"classes": [ROAD, {**SKY, "ids": [256]}]}, "256 is not a whole number"),
        ({"classes": [ROAD, {**SKY, "ids": [True]}]}, "True is not a whole number"),
        ({"classes": [ROAD, {**SKY, "colour": [1, 2]}]}, "not a colour of red, green and blue"),
        ({"classes": [ROAD, {**SKY, "name": " "}]}, "no name"),
        ({"classes": [ROAD, {**SKY, "name": "a\nb"}]}, "no name of one line"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, content, problem):
    with pytest.raises(InputError, match=problem) as caught:
        classes_of(tmp_path, content)
    assert "classes.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 3000])
def test_no_json_is_refused(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(InputError, match=r"classes\.json"):
        read_classes(tmp_path / "classes.json")


def test_files_of_annotation_tools(tmp_path):
    exports = {
        "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,64,0::\n",
        "class_names.txt": "__ignore__\n_background_\ncat\n",
        "obj_class_to_machine_color.json": '{"cat": [1, 1, 1]}',
        "_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n",
    }
    for name, text in exports.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        classes, path = find_classes([tmp_path, folder])
        assert path == folder / name
        assert [one.name.strip("_") for one in classes.classes] == ["background", "cat"]
        assert [one.ids for one in classes.classes] == [(0,), (1,)]
        assert len(set(classes.palette)) == 2 and max(classes.palette[1]) > 60  # visible
        (folder / name).write_text("what")
        with pytest.raises(InputError, match=name):
            find_classes([folder])
    write_classes(tmp_path / "classes.json", classes)
    assert find_classes([tmp_path / "labelmap.txt", tmp_path])[1] == tmp_path / "classes.json"  # wins


def test_classes_of_masks():
    binary = classes_of_masks([0, 255], [], "D")
    assert [one.ids for one in binary.classes] == [(0,), (255,)] and binary.ignore_ids == ()
    several = classes_of_masks([5, 0, 255], [], "D")
    assert [(one.name, one.ids) for one in several.classes] == [("class_0", (0,)), ("class_5", (5,))]
    coloured = classes_of_masks([], [(255, 0, 0), (0, 0, 0)], "D")
    assert coloured.names == ("background", "colour_ff0000")
    white = (255, 255, 255)
    assert classes_of_masks([], [white, (0, 0, 0)], "D").names == ("background", "foreground")
    assert classes_of_masks([], [white, (9, 9, 9)], "D").names == ("colour_090909", "colour_ffffff")
    for values, colours in (([1], []), ([0, 1], [(0, 0, 0)]), (range(256), [])):
        with pytest.raises(InputError, match="D"):
            classes_of_masks(values, colours, "D")


def test_masks_with_smoothed_edges_show_no_classes():
    for values, colours in (([*range(0, 255, 15), 255], []), ([], [(0, 0, number) for number in range(65)])):
        with pytest.raises(
            InputError, match="D show (18 values up to 255|65 colours), as those with smoothed edges do"
        ):
            classes_of_masks(values, colours, "D")
    for values, colours in ((range(183), []), ([], [(0, 0, number) for number in range(64)])):
        assert len(classes_of_masks(values, colours, "D").names) == len(values) + len(colours)
