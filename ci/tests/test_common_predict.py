"""common/scores/predict.py: which pictures are taken, what is written for each, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.pictures import DatasetInfo
from common.errors import InputError
from common.scores.drawing import LEGEND_ROW, colour, for_cards, overlay, panel
from common.scores.predict import find_images, parse_predict_args, predict, result_names

PALETTE = [(10, 20, 30), (40, 50, 60), (255, 0, 1)]
INFO = DatasetInfo(("red", "green", "blue"), PALETTE)
RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


class BrightestChannel(torch.nn.Module):
    """The class of a pixel is its brightest channel: 0 red, 1 green, 2 blue."""

    def __init__(self, num_classes=3, backbone="small"):
        super().__init__()
        if backbone not in ("small", "large"):
            raise ValueError(f"no backbone {backbone}")
        self.options = {"num_classes": num_classes, "backbone": backbone}
        self.classifier = torch.nn.Conv2d(3, num_classes, kernel_size=1, bias=False)

    def forward(self, images):
        assert not self.training
        if min(images.shape[-2:]) < 2:
            raise ValueError(f"images have the shape {list(images.shape)}; sides of 2 pixels or more are needed")
        return self.classifier(images)


def from_reference(content):
    return {name.removeprefix("module."): value for name, value in content.items()}


def to_tensor(image, options):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


WEIGHTS = {"classifier.weight": torch.eye(3)[:, :, None, None]}


def our_checkpoint(path, **other):
    content = {
        "format": "segmentation-zoo-1",
        "model_class": "BrightestChannel",
        "options": {"num_classes": 3, "backbone": "small"},
        "model": WEIGHTS,
        "steps_done": 7,
        "best": 0.5,
        "images_per_step": 8,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, **other}, path)
    return path


def draw(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8)).save(path)
    return path


def run(source, checkpoint, output, build_model=BrightestChannel, info=INFO, to_input=to_tensor, flags=()):
    sources = source if isinstance(source, list) else [source]
    argv = ["--checkpoint", checkpoint, "--input", *sources, "--output", output, "--device", "cpu", *flags]
    args = parse_predict_args({"backbone": ["small", "large"]}, "Tries it.", [str(part) for part in argv])
    return predict(args, build_model, from_reference, info, to_input)


def pixels(path):
    with Image.open(path) as picture:
        return picture.mode, np.asarray(picture).tolist()


# ---- colours


def test_each_class_has_its_colour_and_ignored_pixels_one_that_no_class_has():
    expected = [[[10, 20, 30], [255, 0, 1]], [[224, 224, 192], [40, 50, 60]]]
    for dtype in (np.uint8, np.int64):
        got = colour(np.array([[0, 2], [255, 1]], dtype), PALETTE)
        assert got.dtype == np.uint8 and got.tolist() == expected
    assert colour(np.array([[255]]), [(224, 224, 192)]).tolist() == [[[255, 0, 255]]]


def test_an_overlay_lies_between_picture_and_colours():
    image, colours = np.full((1, 1, 3), (0, 100, 255), np.uint8), np.full((1, 1, 3), (100, 200, 255), np.uint8)
    assert overlay(image, colours, strength=0.5).tolist() == [[[50, 150, 255]]]
    assert overlay(image, colours, strength=0).tolist() == image.tolist()
    assert overlay(image, colours, strength=1).tolist() == colours.tolist()
    assert overlay(image, colours).tolist() == [[[55, 155, 255]]]


def test_a_panel_shows_picture_truth_and_prediction_from_left_to_right():
    image = np.full((2, 1, 3), 99, np.uint8)
    got = panel(image, np.array([[0], [255]]), np.array([[1], [2]]), PALETTE)
    assert got.dtype == np.uint8
    assert got.tolist() == [[[99] * 3, [10, 20, 30], [40, 50, 60]], [[99] * 3, [224, 224, 192], [255, 0, 1]]]


@pytest.mark.parametrize("height, width, shape", [(4, 6, (12, 6)), (6, 4, (6, 12)), (10, 2050, (12, 684))])
def test_a_card_has_the_parts_of_a_wide_panel_below_each_other_and_not_larger_than_it_shows(height, width, shape):
    parts = [np.full((height, width, 3), value, np.uint8) for value in (10, 20, 30)]
    card = for_cards(np.concatenate(parts, axis=1))
    along = np.split(card, 3, axis=0 if width > height else 1)
    assert card.shape == (*shape, 3) and [part.mean() for part in along] == [10, 20, 30]


# ---- images


def test_images_of_a_folder_and_of_those_in_it_are_sorted(tmp_path):
    for name in ("b.png", "a.JPG", "a_sub/z.png", "sub/deep/c.webp", "sub/notes.txt", "d.png.part", "weights.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [str(path.relative_to(root)) for path, root in find_images(tmp_path)]
    assert found == ["a.JPG", "a_sub/z.png", "b.png", "sub/deep/c.webp"]
    assert find_images(str(tmp_path / "b.png")) == [(tmp_path / "b.png", tmp_path)]


def test_hidden_files_of_a_folder_are_no_images_unless_they_are_named(tmp_path):
    root = tmp_path / ".data" / "in"  # what is above the folder does not count
    names = ("a.png", "._a.png", "sub/b.c.png", "sub/._b.c.png", ".thumbnails/a.png", "sub/.thumbnails/deep/b.png")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert find_images(root) == [(root / "a.png", root), (root / "sub" / "b.c.png", root)]
    for hidden in (root / "._a.png", root / ".thumbnails" / "a.png"):
        assert find_images(hidden) == [(hidden, hidden.parent)]
    assert find_images(root / ".thumbnails") == [(root / ".thumbnails" / "a.png", root / ".thumbnails")]


def test_links_to_folders_are_followed_and_nothing_comes_twice(tmp_path):
    for name in ("in/a.png", "disk/b.png", "disk/deep/c.png", "in/own/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in (("more", "disk"), ("again", "disk"), ("loop", "in"), ("up", "."), ("z", "in/own")):
        (tmp_path / "in" / name).symlink_to((tmp_path / target).resolve())
    (tmp_path / "disk" / "back").symlink_to((tmp_path / "in").resolve())
    found = [str(path.relative_to(root)) for path, root in find_images(tmp_path / "in")]
    assert found == ["a.png", "again/b.png", "again/deep/c.png", "own/d.png"]


def test_files_of_other_kinds_are_counted(tmp_path, capsys):
    for name in ("a.png", "b.heic", "c.HEIC", "d.txt", "LICENSE", ".e.heic"):
        (tmp_path / name).touch()
    assert len(find_images(tmp_path)) == 1
    expected = f"note: 4 files in {tmp_path} are not images, judging by their names: .heic: 2, no suffix: 1, .txt: 1\n"
    assert capsys.readouterr().out == expected
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"it holds \.heic: 2, no suffix: 1, \.txt: 1; give another folder"):
        find_images(tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".jp2", ".avif", ".tga"])
def test_every_usual_kind_of_picture_is_found(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert len(find_images(tmp_path)) == 1


def named(*names: str) -> list[str]:
    results = result_names({Path("in", name): Path("in") for name in names})
    return [str(results[Path("in", name)]) for name in names]


def test_results_are_called_as_their_images_and_never_alike():
    assert named("a.jpg", "sub/a.jpg", "b.c.png") == ["a", "sub/a", "b.c"]
    assert named("a.jpg", "a.png", "a.jpg.png") == ["a.jpg", "a.png", "a.jpg.png"]
    assert named("a.jpg.png", "a.jpg.png.png", "a.png", "a.jpg") == ["a.jpg.png", "a.jpg.png.png", "a.png", "a.jpg"]


def test_a_name_that_cannot_be_printed_is_predicted_and_shown(tmp_path, capsys):
    name = b"stra\xdfe.png".decode("utf-8", "surrogateescape")
    draw(tmp_path / "in" / name, [[RED] * 2] * 2)
    run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    assert (tmp_path / "out" / name.replace(".png", "_ids.png")).is_file()
    assert "stra\N{REPLACEMENT CHARACTER}e.png -> " in capsys.readouterr().out


def test_a_source_without_images_is_explained(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such file or folder; give"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no image \(\.png, \.jpg.*give another folder"):
        find_images(tmp_path)


# ---- flags


def test_the_first_choice_of_an_option_is_its_default():
    argv = ["--checkpoint", "c", "--input", "i", "--output", "o"]
    args = parse_predict_args({"backbone": ["small", "large"]}, "", argv)
    assert (args.options, args.device) == ({"backbone": "small"}, "auto")
    assert parse_predict_args({"backbone": ["small", "large"]}, "", [*argv, "--backbone", "large"]).options == {
        "backbone": "large"
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input", "i", "--output", "o"], "--checkpoint"),
        (["--checkpoint", "c", "--input", "i", "--output", "o", "--backbone", "huge"], "huge"),
        (["--checkpoint", "c", "--input", "i", "--out", "o"], "--out"),
    ],
)
def test_a_wrong_flag_ends_with_a_usage_error(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        parse_predict_args({"backbone": ["small", "large"]}, "", argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# ---- predict


def test_masks_overlays_and_ids_are_exact_and_of_the_picture_s_own_odd_size(tmp_path):
    draw(tmp_path / "in" / "street.png", [[RED, GREEN, BLUE], [BLUE, BLUE, RED]] + [[GREEN] * 3] * 3)
    written = run(tmp_path / "in" / "street.png", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")

    ids = [[0, 1, 2], [2, 2, 0]] + [[1] * 3] * 3
    assert pixels(tmp_path / "out" / "street_ids.png") == ("P", ids)
    assert pixels(tmp_path / "out" / "street_color.png") == ("RGB", [[list(PALETTE[i]) for i in row] for row in ids])
    mode, blended = pixels(tmp_path / "out" / "street_overlay.png")
    assert (mode, len(blended), len(blended[0])) == ("RGB", 5 + 3 * LEGEND_ROW, 3)
    assert blended[0][0] == pytest.approx([0.45 * 200 + 0.55 * 10, 0.45 * 10 + 0.55 * 20, 0.45 * 10 + 0.55 * 30], abs=1)
    assert written == [tmp_path / "out" / "street_overlay.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "street_color.png",
        "street_ids.png",
        "street_overlay.png",
    ]


def test_pictures_of_a_folder_keep_their_subfolders_and_sizes(tmp_path, capsys):
    draw(tmp_path / "in" / "a" / "0001.png", [[RED] * 4] * 2)
    draw(tmp_path / "in" / "b" / "0001.png", [[BLUE] * 3] * 5)
    draw(tmp_path / "in" / "dots.in.name.png", [[GREEN] * 2] * 2)
    written = run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert pixels(out / "a" / "0001_ids.png")[1] == [[0] * 4] * 2
    assert pixels(out / "b" / "0001_ids.png")[1] == [[2] * 3] * 5
    assert pixels(out / "dots.in.name_ids.png")[1] == [[1] * 2] * 2
    assert len(written) == len(set(written)) == 3
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]


def test_names_that_differ_in_the_suffix_alone_do_not_overwrite_each_other(tmp_path):
    draw(tmp_path / "in" / "a.png", [[RED] * 2] * 2)
    draw(tmp_path / "in" / "a.bmp", [[BLUE] * 2] * 2)
    written = run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    assert len(set(written)) == 2
    ids = {path.name: pixels(path)[1][0][0] for path in (tmp_path / "out").glob("*_ids.png")}
    assert ids == {"a.png_ids.png": 0, "a.bmp_ids.png": 2}


def test_a_second_run_does_not_take_the_results_of_the_first_for_images(tmp_path):
    draw(tmp_path / "in" / "a.png", [[RED] * 2] * 2)
    checkpoint = our_checkpoint(tmp_path / "best.pt")
    first = run(tmp_path / "in", checkpoint, tmp_path / "in" / "out")
    assert run(tmp_path / "in", checkpoint, tmp_path / "in" / "out") == first == [tmp_path / "in/out/a_overlay.png"]
    assert len(list((tmp_path / "in").rglob("*.png"))) == 4
    with pytest.raises(InputError, match="give another output folder"):
        run(tmp_path / "in", checkpoint, tmp_path / "in")
    assert len(run(tmp_path / "in" / "a.png", checkpoint, tmp_path / "in")) == 1  # one picture has no second run


def test_grey_pictures_and_pictures_with_transparency_are_taken(tmp_path):
    draw(tmp_path / "in" / "grey.png", [[7, 8], [9, 10]])
    draw(tmp_path / "in" / "alpha.png", [[(*BLUE, 100)] * 2] * 2)
    run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    assert pixels(tmp_path / "out" / "alpha_ids.png")[1] == [[2, 2], [2, 2]]
    assert (tmp_path / "out" / "grey_ids.png").is_file()


def test_weights_of_the_reference_are_renamed_and_built_with_the_options_of_the_flags(tmp_path):
    draw(tmp_path / "a.png", [[GREEN] * 2] * 2)
    torch.save({f"module.{name}": value for name, value in WEIGHTS.items()}, tmp_path / "theirs.pth")
    run(tmp_path / "a.png", tmp_path / "theirs.pth", tmp_path / "out")
    assert pixels(tmp_path / "out" / "a_ids.png")[1] == [[1, 1], [1, 1]]


def test_a_checkpoint_of_ours_decides_its_options_itself(tmp_path):
    draw(tmp_path / "a.png", [[BLUE] * 2] * 2)
    two_classes = {"classifier.weight": torch.eye(3)[1:, :, None, None]}  # green and blue
    options = {"num_classes": 2, "backbone": "large"}
    run(tmp_path / "a.png", our_checkpoint(tmp_path / "b.pt", options=options, model=two_classes), tmp_path / "out")
    assert pixels(tmp_path / "out" / "a_ids.png")[1] == [[1, 1], [1, 1]]


def inputs_of_the_network(tmp_path, monkeypatch, **options) -> torch.Tensor:
    """What the network is given of a red picture."""
    seen, forward = [], BrightestChannel.forward
    monkeypatch.setattr(
        BrightestChannel, "forward", lambda self, images: (seen.append(images), forward(self, images))[1]
    )
    draw(tmp_path / "a.png", [[RED] * 3] * 2)
    run(tmp_path / "a.png", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out", **options)
    return seen[0]


def test_a_picture_is_normalised_as_its_data_set_is(tmp_path, monkeypatch):
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 0.2)
    images = inputs_of_the_network(tmp_path, monkeypatch, info=INFO._replace(mean=mean, std=std), to_input=None)
    assert images.shape == (1, 3, 2, 3) and images.dtype == torch.float32
    expected = [(value / 255 - m) / s for value, m, s in zip(RED, mean, std, strict=True)]
    assert images[0, :, 1, 2].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_folder_may_make_the_input_itself_by_the_options_of_its_network(tmp_path, monkeypatch):
    given = []

    def to_input(image, options):
        given.append((image.size, options))
        return torch.zeros(3, 4, 4)

    images = inputs_of_the_network(tmp_path, monkeypatch, to_input=to_input)
    assert given == [((3, 2), {"num_classes": 3, "backbone": "small"})]
    assert torch.equal(images, torch.zeros(1, 3, 4, 4))
    assert np.asarray(Image.open(tmp_path / "out" / "a_ids.png")).shape == (2, 3)


def cut_off(path):
    our_checkpoint(path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"no checkpoint .*w\.pt; give a file"),
        (lambda path: path.mkdir(), r"no checkpoint .*w\.pt; give a file"),
        (cut_off, r"w\.pt is damaged, cut off \(200 bytes\) or no file of weights"),
        (lambda path: path.write_bytes(b""), r"w\.pt is damaged, cut off \(0 bytes\)"),
        (lambda path: path.write_text("<html>not found</html>"), r"w\.pt holds .* no file of weights"),
        (lambda path: torch.save([1, 2], path), r"w\.pt holds a list and no weights"),
        (lambda path: torch.save({"other.weight": torch.zeros(1)}, path), r"1 missing: classifier\.weight.*unexpected"),
        (lambda path: our_checkpoint(path, model={}), r"1 missing: classifier\.weight"),
        (
            lambda path: our_checkpoint(path, model={"classifier.weight": torch.zeros(4, 3, 1, 1)}),
            r"1 of another shape: classifier\.weight",
        ),
        (
            lambda path: our_checkpoint(path, model_class="Other", options={"num_classes": 3, "depth": 50}),
            r"checkpoint of Other \{.*'depth': 50\}.*the folder of that network",
        ),
        (lambda path: our_checkpoint(path, options={"num_classes": 3, "backbone": "huge"}), r"huge.*the folder of"),
    ],
    ids=[
        "missing", "folder", "cut off", "empty", "text", "list", "other keys", "no weights", "other shape",
        "other model", "other options",
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_explained_in_one_line(tmp_path, make, message):
    draw(tmp_path / "a.png", [[RED] * 2] * 2)
    make(tmp_path / "w.pt")
    with pytest.raises(InputError, match=message) as error:
        run(tmp_path / "a.png", tmp_path / "w.pt", tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output", ["taken", "taken/below"])
def test_an_output_that_cannot_be_written_is_named(tmp_path, output):
    draw(tmp_path / "a.png", [[RED] * 2] * 2)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=rf"--output .*{output} cannot be written to \(.+\); give another folder"):
        run(tmp_path / "a.png", our_checkpoint(tmp_path / "best.pt"), tmp_path / output)


def test_a_picture_that_cannot_be_decoded_or_is_too_small_is_named(tmp_path):
    checkpoint = our_checkpoint(tmp_path / "best.pt")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="damaged.png"):
        run(tmp_path / "damaged.png", checkpoint, tmp_path / "out")
    draw(tmp_path / "dot.png", [[RED]])
    with pytest.raises(InputError, match=r"dot\.png cannot be predicted: .*sides of 2 pixels"):
        run(tmp_path / "dot.png", checkpoint, tmp_path / "out")


def test_one_bad_picture_is_listed_at_the_end_and_the_rest_is_done(tmp_path, capsys):
    for name in "abcd":
        draw(tmp_path / "in" / f"{name}.png", [[RED] * 2] * 2)
    (tmp_path / "in" / "b.png").write_bytes(b"")
    draw(tmp_path / "in" / "c.png", [[RED]])
    (tmp_path / "in" / "e.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "f.png").symlink_to("f.png")
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    assert end.value.code == 4
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["[1/6]", "[4/6]"]
    what, title, *reasons = said.err.splitlines()
    assert "our BrightestChannel" in what and title == "4 of 6 pictures could not be predicted:" and len(reasons) == 4
    assert "b.png (it is empty)" in reasons[0] and "c.png cannot be predicted: " in reasons[1]
    assert sorted(path.name for path in (tmp_path / "out").glob("*_ids.png")) == ["a_ids.png", "d_ids.png"]


def test_pictures_of_which_none_can_be_used_are_bad_input(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 2 pictures can be used: .*a\.png .it is empty"):
        run(tmp_path, our_checkpoint(tmp_path.parent / "best.pt"), tmp_path.parent / "out")


def test_a_photograph_is_seen_as_people_see_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its left side
    picture = np.array([[RED, GREEN], [RED, GREEN], [RED, GREEN]], np.uint8)
    Image.fromarray(np.ascontiguousarray(np.rot90(picture))).save(tmp_path / "a.png", exif=exif)
    run(tmp_path / "a.png", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    assert pixels(tmp_path / "out" / "a_ids.png") == ("P", [[0, 1]] * 3)


def test_a_picture_that_is_too_large_for_the_device_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "in" / "a.png", [[RED] * 4] * 2)
    errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB"), RuntimeError("a bug")]

    def out_of_memory(*_):
        raise errors[0]

    monkeypatch.setattr(BrightestChannel, "forward", out_of_memory)
    checkpoint = our_checkpoint(tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"a\.png \(4 x 2\) needs more memory than cpu has; make the picture smaller"):
        run(tmp_path / "in", checkpoint, tmp_path / "out")
    errors.pop(0)
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path / "in", checkpoint, tmp_path / "out")


def test_several_images_and_folders_at_once(tmp_path):
    checkpoint = our_checkpoint(tmp_path / "best.pt")
    one, two = draw(tmp_path / "a" / "one.png", [[RED, RED]] * 2), draw(tmp_path / "b" / "two.png", [[BLUE, BLUE]] * 2)
    draw(tmp_path / "c" / "deep" / "three.png", [[GREEN, GREEN]] * 2)
    assert [path.name for path in run([one, two, tmp_path / "c"], checkpoint, tmp_path / "out")] == [
        "one_overlay.png",
        "two_overlay.png",
        "three_overlay.png",
    ]
    assert pixels(tmp_path / "out" / "deep" / "three_ids.png") == ("P", [[1, 1]] * 2)


def test_images_of_one_name_are_not_written_over_each_other(tmp_path):
    checkpoint = our_checkpoint(tmp_path / "best.pt")
    sources = [draw(tmp_path / folder / "one.png", [[RED, RED], [RED, RED]]) for folder in ("a", "b")]
    with pytest.raises(InputError, match="one.png; predict them in two runs"):
        run(sources, checkpoint, tmp_path / "out")


def test_no_kernels_are_searched_for_the_size_of_each_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    searched, forward = [], BrightestChannel.forward

    def watched(self, images):
        searched.append(torch.backends.cudnn.benchmark)
        return forward(self, images)

    monkeypatch.setattr(BrightestChannel, "forward", watched)
    for name, width in (("a", 2), ("b", 3)):
        draw(tmp_path / "in" / f"{name}.png", [[RED] * width] * 2)
    run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    assert searched == [False, False]


class Foreground(torch.nn.Module):
    """One logit: red minus one half, at half the size of the image."""

    def __init__(self, num_classes=1):
        super().__init__()
        self.options = {"num_classes": num_classes}
        self.shift = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        return images[:, :1, ::2, ::2] - self.shift


def test_a_single_logit_is_foreground_above_zero_and_brought_to_the_size_of_the_picture(tmp_path):
    weights = {"shift": torch.tensor(0.5)}
    checkpoint = our_checkpoint(tmp_path / "b.pt", model_class="Foreground", options={"num_classes": 1}, model=weights)
    picture = draw(tmp_path / "one.png", [[RED] * 4 + [BLUE] * 4] * 4)
    run(picture, checkpoint, tmp_path / "out", Foreground, INFO._replace(channels=1))
    assert pixels(tmp_path / "out" / "one_ids.png") == ("P", [[1] * 4 + [0] * 4] * 4)


# ---- what is said and written beside


def test_the_share_of_each_class_is_said_and_that_one_covers_nearly_all(tmp_path, capsys):
    draw(tmp_path / "in" / "a.png", [[RED, RED, RED, BLUE]] * 2)
    draw(tmp_path / "in" / "b.png", [[GREEN] * 2] * 2)
    run(tmp_path / "in", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("a_overlay.png: red 75.0%, blue 25.0%")
    assert second.endswith("b_overlay.png: green 100.0% (nearly all of it is one class)")


def test_ids_are_seen_in_their_colours_and_read_as_ids(tmp_path):
    draw(tmp_path / "a.png", [[RED, BLUE]] * 2)
    run(tmp_path / "a.png", our_checkpoint(tmp_path / "best.pt"), tmp_path / "out")
    with Image.open(tmp_path / "out" / "a_ids.png") as picture:
        assert np.asarray(picture.convert("RGB"))[0].tolist() == [list(PALETTE[0]), list(PALETTE[2])]


TWO = INFO._replace(class_names=("no", "yes"), channels=1)


def foreground_of(tmp_path, *flags: str) -> list:
    """The ids of a row of reds by `Foreground`, whose logit is the red in [0, 1] minus 0.5."""
    checkpoint = our_checkpoint(
        tmp_path / "b.pt", model_class="Foreground", options={"num_classes": 1}, model={"shift": torch.tensor(0.5)}
    )
    picture = draw(tmp_path / "one.png", [[(red, 0, 0)] * 2 for red in (0, 0, 153, 153, 255, 255)])
    run(picture, checkpoint, tmp_path / "out", Foreground, TWO, flags=flags)
    return pixels(tmp_path / "out" / "one_ids.png")[1]


def test_a_threshold_decides_where_the_second_of_two_classes_begins(tmp_path):
    assert [row[0] for row in foreground_of(tmp_path)][::5] == [0, 1]
    # probabilities of the rows: 0.378, ..., 0.622
    assert [row[0] for row in foreground_of(tmp_path, "--threshold", "0.7")] == [0] * 6
    assert [row[0] for row in foreground_of(tmp_path, "--threshold", "0.3")] == [1] * 6
    assert not (tmp_path / "out" / "one_prob.png").exists()


def test_probabilities_are_written_in_16_bits(tmp_path):
    foreground_of(tmp_path, "--probabilities")
    with Image.open(tmp_path / "out" / "one_prob.png") as picture:
        values = np.asarray(picture) / 65535
    assert values[[0, 5], 0].tolist() == pytest.approx([1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(-0.5))], abs=1e-4)


def test_scales_and_mirrored_pictures_are_seen_as_in_an_evaluation(tmp_path, monkeypatch):
    """Of a picture of 8 x 8 at half its size, as it is and mirrored, the network is shown 4 x 4, twice."""
    seen = []
    forward = BrightestChannel.forward
    monkeypatch.setattr(BrightestChannel, "forward", lambda net, images: (seen.append(images), forward(net, images))[1])
    image = draw(tmp_path / "a.png", [[(250, 0, 0)] * 4 + [(0, 0, 250)] * 4] * 8)
    flags = ["--scales", "0.5", "--flip"]
    run(image, our_checkpoint(tmp_path / "best.pt"), tmp_path / "out", flags=flags)
    assert [images.shape[-2:] for images in seen] == [(4, 4)] * 2
    assert torch.equal(seen[0].flip(-1), seen[1])
    assert pixels(tmp_path / "out" / "a_ids.png")[1] == [[0] * 4 + [2] * 4] * 8


@pytest.mark.parametrize("flags", [["--threshold", "0.4"], ["--probabilities"]])
def test_what_there_is_of_two_classes_alone_is_refused_for_more(tmp_path, flags):
    draw(tmp_path / "a.png", [[RED] * 2] * 2)
    with pytest.raises(InputError, match=rf"{flags[0]} is for two classes, and there are 3 here; leave it out"):
        run(tmp_path / "a.png", tmp_path / "none.pt", tmp_path / "out", flags=flags)
    assert not (tmp_path / "out").exists()
