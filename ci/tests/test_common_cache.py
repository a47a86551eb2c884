"""common/data/cache.py and its command: what is read from a cache is what would be decoded."""

import json
import os
import re
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import FOLDERS, ROOT, module, parsed
from ci.tests.runs import as_if_started
from common.data import cache
from common.data.cache import HEADER_BYTES, CachedReader, cached, check_cache
from common.data.cityscapes import find_pairs, read_pair
from common.errors import InputError
from common.samples.layout import draw
from common.tools import cache as command


@pytest.fixture
def pairs(tiny_cityscapes):
    return find_pairs(tiny_cityscapes(train=3), "train")


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def free(monkeypatch) -> SimpleNamespace:
    """What the disk seems to have: `free.bytes`, so that no test depends on this machine's."""
    disk = SimpleNamespace(bytes=1 << 40)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=disk.bytes))
    return disk


def counting(read, calls: list):
    return lambda pair: (calls.append(pair), read(pair))[1]


def equal(one, other) -> bool:
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


class Set:
    """Of a data set, what a cache looks at."""

    def __init__(self, pairs, read):
        self.pairs, self.read = pairs, read

    def __len__(self):
        return len(self.pairs)


def test_each_pair_is_decoded_once_and_equal_ever_after(pairs, folder):
    calls = []
    reader = CachedReader(folder, counting(read_pair, calls), "cityscapes")
    for _ in range(3):
        for pair in pairs:
            assert equal(reader(pair), read_pair(pair))
    assert calls == pairs
    other_process = CachedReader(folder, counting(read_pair, calls), "cityscapes")
    assert all(equal(other_process(pair), read_pair(pair)) for pair in pairs)
    assert calls == pairs
    assert sorted(path.suffix for path in folder.iterdir()) == [".pair"] * 3
    assert all(path.stat().st_size == HEADER_BYTES + 4 * 32 * 48 for path in folder.iterdir())


def test_without_a_folder_there_is_no_cache():
    assert cached(Namespace(cache="", cache_share=1.0), read_pair, "cityscapes") is read_pair


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(share, folder):
    with pytest.raises(InputError, match=f"--cache_share {share}: give a share of the pictures above 0, and 1 at most"):
        cached(Namespace(cache=str(folder), cache_share=share), read_pair, "cityscapes")


def test_a_share_of_the_pictures_is_kept_and_the_others_are_decoded_each_time(folder, tmp_path, capsys):
    reader = CachedReader(folder, read_pair, "c", share=0.3)
    files = [(tmp_path / f"{index}.png", tmp_path / f"{index}_label.png") for index in range(1000)]
    assert 250 < sum(map(reader.keeps, files)) < 350  # 300 and a standard deviation of 14
    assert all(map(CachedReader(folder, read_pair, "c").keeps, files))
    kept, other = (next(pair for pair in files if reader.keeps(pair) is wanted) for wanted in (True, False))
    for pair in (kept, other):
        Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(pair[0])
        Image.fromarray(np.full((4, 6), 1, np.uint8)).save(pair[1])
    check_cache(folder, [Set([kept, other], reader)])
    assert "0 pictures are there, 1 (about 0.00 GB) are to come, 1 are decoded each time" in capsys.readouterr().out
    for pair in (kept, other):
        assert reader(pair)[0].max() == 7 and reader.holds(pair) is (pair is kept)
    assert len(list(folder.glob("*.pair"))) == 1


def test_readers_of_different_contents_do_not_meet(pairs, folder):
    one = CachedReader(folder, lambda pair: (np.full((2, 2, 3), 1, np.uint8), np.full((2, 2), 1, np.uint8)), "one")
    two = CachedReader(folder, lambda pair: (np.full((2, 2, 3), 2, np.uint8), np.full((2, 2), 2, np.uint8)), "two")
    assert [reader(pairs[0])[0].max() for reader in (one, two, one, two)] == [1, 2, 1, 2]


@pytest.mark.parametrize("changed", ["image", "label"])
@pytest.mark.parametrize("how", ["content", "time"])
def test_a_source_that_has_changed_is_decoded_again(pairs, folder, changed, how):
    pair = pairs[0]
    CachedReader(folder, read_pair, "c")(pair)
    path = getattr(pair, changed)
    before = path.stat().st_mtime_ns
    if how == "content":
        Image.fromarray(np.full((32, 48, 3) if changed == "image" else (32, 48), 7, np.uint8)).save(path)
        os.utime(path, ns=(before, before))  # the size tells
    else:
        os.utime(path, ns=(before + 1, before + 1))
    calls = []
    reader = CachedReader(folder, counting(read_pair, calls), "c")
    assert not reader.holds(pair)
    assert equal(reader(pair), read_pair(pair)) and calls == [pair]
    assert equal(reader(pair), read_pair(pair)) and calls == [pair]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[: HEADER_BYTES + 100],
        lambda data: data + b"x",
        lambda data: b"[1, 2]".ljust(HEADER_BYTES) + data[HEADER_BYTES:],
        lambda data: data.replace(b'"format": 1', b'"format": 0', 1),
        lambda data: os.urandom(len(data)),
    ],
    ids=["empty", "half a header", "half of it", "too long", "no header", "another format", "noise"],
)
def test_a_damaged_file_is_written_anew(pairs, folder, spoil):
    CachedReader(folder, read_pair, "c")(pairs[0])
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    reader = CachedReader(folder, read_pair, "c")
    assert not reader.holds(pairs[0])
    assert equal(reader(pairs[0]), read_pair(pairs[0]))
    assert path.read_bytes() == whole


def of_first_rules(folder: Path) -> dict[str, bytes]:
    """Make the files of a cache such as the first version wrote: it said nothing of rules."""
    for path in folder.glob("*.pair"):
        data = path.read_bytes()
        header = json.loads(data[:HEADER_BYTES])
        assert header.pop("rules") == 2
        path.write_bytes(json.dumps(header).encode().ljust(HEADER_BYTES) + data[HEADER_BYTES:])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_of_the_first_rules_are_taken_where_the_rules_of_now_give_the_same(pairs, folder):
    reader = CachedReader(folder, read_pair, "c")
    arrays = [reader(pair) for pair in pairs]
    before = of_first_rules(folder)
    reader = CachedReader(folder, read_pair, "c")
    assert all(reader.holds(pair) for pair in pairs)
    assert all(equal(reader(pair), kept) for pair, kept in zip(pairs, arrays, strict=True))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def as_palette(pair):
    label = Image.open(pair.label).copy()
    label.putpalette([9, 8, 7] * 256)
    label.save(pair.label)


def as_turned(pair):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(pair.image).save(pair.image, exif=exif)


def in_16_bits(pair):
    Image.fromarray(np.full((32, 48), 40000, np.uint16)).save(pair.image)


@pytest.mark.parametrize("spoil", [as_palette, as_turned, in_16_bits])
def test_files_of_the_first_rules_are_decoded_again_where_these_read_otherwise(pairs, folder, spoil):
    spoil(pairs[0])
    CachedReader(folder, read_pair._replace(exif="ignore"), "c")(pairs[0])
    of_first_rules(folder)
    assert not CachedReader(folder, read_pair, "c").holds(pairs[0])


def test_files_of_later_rules_are_decoded_again(pairs, folder):
    CachedReader(folder, read_pair, "c")(pairs[0])
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"rules": 2', b'"rules": 3', 1))
    reader = CachedReader(folder, read_pair, "c")
    assert not reader.holds(pairs[0])
    assert equal(reader(pairs[0]), read_pair(pairs[0])) and reader.holds(pairs[0])


def test_what_a_user_of_the_arrays_does_stays_with_him(pairs, folder):
    reader = CachedReader(folder, read_pair, "c")
    reader(pairs[0])
    image, label = reader(pairs[0])
    image[:] = label[:] = 0
    torch.from_numpy(image).fill_(3)
    assert equal(CachedReader(folder, read_pair, "c")(pairs[0]), read_pair(pairs[0]))


def test_arrays_stay_valid_when_the_file_is_gone_and_no_file_stays_open(pairs, folder):
    reader = CachedReader(folder, read_pair, "c")
    for pair in pairs:
        reader(pair)
    before = len(os.listdir("/proc/self/fd"))
    arrays = [reader(pair) for pair in pairs for _ in range(20)]
    for path in folder.iterdir():
        path.unlink()
    assert all(equal(got, read_pair(pairs[index // 20])) for index, got in enumerate(arrays))
    del arrays
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_disk_that_is_full_costs_speed_and_nothing_else(pairs, folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    reader = CachedReader(folder, read_pair, "c")
    for pair in pairs:
        assert equal(reader(pair), read_pair(pair))
    assert list(folder.iterdir()) == []  # nothing half
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "cannot take more (No space left on device): decoding instead" in errors


def test_the_last_gigabyte_of_a_disk_is_left_to_the_run(pairs, folder, free, capsys):
    size = 4096 + 4 * 32 * 48
    reader = CachedReader(folder, read_pair, "c")
    for kept, pair in enumerate(pairs[:2]):
        free.bytes = (1 << 30) + size
        assert equal(reader(pair), read_pair(pair))
        assert len(list(folder.iterdir())) == kept + 1
    assert capsys.readouterr().err == ""
    free.bytes -= 1
    for _ in range(2):
        assert equal(reader(pairs[2]), read_pair(pairs[2]))
    assert len(list(folder.iterdir())) == 2  # nothing half
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "cannot take more (the last 1.1 GB of its disk are left free): decoding instead" in errors
    free.bytes += 1  # somebody has made room
    reader(pairs[2])
    assert len(list(folder.iterdir())) == 3


def test_a_damaged_picture_is_named_and_not_kept(pairs, folder):
    pairs[1].image.write_bytes(b"nothing")
    reader = CachedReader(folder, read_pair, "c")
    with pytest.raises(InputError, match=str(pairs[1].image)):
        reader(pairs[1])
    assert list(folder.iterdir()) == []


def _read_all(folder, pairs, seed) -> bool:
    reader = CachedReader(folder, read_pair, "c")
    order = np.random.default_rng(seed).permutation(len(pairs))
    return all(equal(reader(pairs[index]), read_pair(pairs[index])) for index in order)


def test_processes_may_fill_it_together(tiny_cityscapes, folder):
    pairs = find_pairs(tiny_cityscapes(train=20), "train")
    with ProcessPoolExecutor(4) as pool:
        assert all(pool.map(partial(_read_all, folder, pairs), range(4)))
    assert len(list(folder.iterdir())) == 20


# ---- before a run


def test_the_check_makes_the_folder_and_says_what_is_there_and_what_is_to_come(pairs, tmp_path, capsys):
    folder = tmp_path / "new" / "cache"
    reader = CachedReader(folder, read_pair, "c")
    check_cache(folder, [Set(pairs, reader), None, Set(pairs[:1], CachedReader(folder, read_pair, "d"))])
    assert capsys.readouterr().out == f"cache {folder}: 0 pictures are there, 4 (about 0.00 GB) are to come\n"
    for pair in pairs:
        reader(pair)
    check_cache(folder, [Set(pairs, reader)])
    assert capsys.readouterr().out == f"cache {folder}: 3 pictures are there\n"
    check_cache("", [])
    assert capsys.readouterr().out == ""


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(tmp_path, free, capsys):
    size = (1000, 2000)
    pictures = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    reader = CachedReader(tmp_path, lambda pair: pictures, "c")
    files = []
    for index in range(100):
        files.append((tmp_path / f"{index}.png", tmp_path / f"{index}_label.png"))
        for path in files[-1]:
            path.touch()
    reading = Set(files, reader)
    gigabyte = 1 << 30
    part = ", keep a part of them with --cache_share 0.83"
    for there, left in ((gigabyte + 700_000_000, "0.7"), (gigabyte // 2, "0.0")):  # for 100 pictures of 8 MB
        free.bytes = there
        message = (
            f"needs about 0.8 GB more for 100 pictures, and the disk has {left} GB to spare; free some, name a folder "
            f"on another disk{part}, or leave --cache out"
        )
        part = ""
        with pytest.raises(InputError, match=re.escape(message)):
            check_cache(tmp_path, [reading])
    assert not list(tmp_path.glob("*.pair")) and capsys.readouterr().err == ""
    free.bytes = gigabyte + 900_000_000
    check_cache(tmp_path, [reading])


def test_folders_that_cannot_be_written_are_refused(tmp_path, pairs):
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(InputError, match=f"--cache {path} cannot be written to .{reason}.; give another folder"):
            check_cache(path, [])


def test_what_killed_processes_left_is_taken_away_after_an_hour(folder):
    old, new = folder / ".a.tmp", folder / ".b.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    check_cache(folder, [])
    assert list(folder.iterdir()) == [new]


def refuse(call: str, monkeypatch, allowed=lambda path: False) -> None:
    """Have the system refuse to make, or to remove, any file but the allowed ones, as it does to who is not root."""
    real = getattr(Path, call)

    def refused(path, *args, **more):
        if not allowed(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(Path, call, refused)


def test_what_another_user_left_in_a_shared_folder_stays_there(pairs, folder, monkeypatch, capsys):
    others = folder / ".a.tmp"
    others.touch()
    os.utime(others, (time.time() - 4000,) * 2)
    refuse("unlink", monkeypatch, allowed=lambda path: path != others)  # the folder is sticky
    check_cache(folder, [Set(pairs, CachedReader(folder, read_pair, "c"))])
    assert "0 pictures are there, 3 (about 0.00 GB) are to come" in capsys.readouterr().out
    assert list(folder.iterdir()) == [others]


def test_a_cache_that_is_ready_may_be_read_only_on_a_full_disk(pairs, folder, free, monkeypatch, capsys):
    CachedReader(folder, read_pair, "c")(pairs[0])
    CachedReader(folder, read_pair, "c")(pairs[1])
    refuse("touch", monkeypatch)
    refuse("unlink", monkeypatch)
    free.bytes = 0
    check_cache(folder, [Set(pairs[:2], CachedReader(folder, read_pair, "c"))])
    assert capsys.readouterr().out == f"cache {folder}: 2 pictures are there\n"
    with pytest.raises(InputError, match=f"--cache {folder} cannot be written to .Permission denied.; give another"):
        check_cache(folder, [Set(pairs, CachedReader(folder, read_pair, "c"))])


# ---- in the folders


def drawn(name: str, root: Path) -> Path:
    return draw(module(name, "presets").LAYOUT, root, train_images=2, val_images=1, size=(48, 64))


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_trains_and_scores_on_the_same_items_with_a_cache(name, tmp_path, monkeypatch):
    given = {"preset": "tiny", "data_path": drawn(name, tmp_path / "data")}
    build_datasets = module(name, "data").build_datasets
    plain = build_datasets(parsed(name, **given))
    for _ in range(2):  # filling it, and from it
        reading = build_datasets(parsed(name, **given, cache=tmp_path / "cache"))
        check_cache(tmp_path / "cache", reading.used)
        for one, other in zip(plain.used, reading.used, strict=True):
            for key in product(range(2), range(2)) if one is plain.train else range(len(one)):
                assert all(torch.equal(a, b) for a, b in zip(one[key], other[key], strict=True))
    monkeypatch.setattr(Image, "open", None)  # from now on nothing can be decoded
    monkeypatch.setattr("common.data.decode.decode_plain_png", None)
    for dataset in reading.used:
        for pair in dataset.pairs:
            dataset.read(pair)
    assert plain.train and plain.val and sum(map(len, plain.used)) >= 3


def test_the_command_decodes_ahead_and_can_be_repeated(tmp_path, capsys):
    root, folder = drawn("ICNet", tmp_path / "data"), tmp_path / "cache"
    flags = ["--model", "ICNet", "--data_path", str(root), "--cache", str(folder)]
    done = as_if_started(ROOT / "common" / "tools" / "cache.py", *flags)
    assert done.returncode == 0, done.stderr
    command.main(flags)
    for said in (done.stdout, capsys.readouterr().out):
        assert f"all 3 pictures are in {folder}, which holds 0.00 GB" in said
    assert len(list(folder.glob("*.pair"))) == 3
    headers = [json.loads(path.read_bytes()[:HEADER_BYTES]) for path in folder.glob("*.pair")]
    assert {tuple(header["size"]) for header in headers} == {(48, 64)}


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    root = drawn("ICNet", tmp_path / "data")
    next((root / "leftImg8bit" / "train").rglob("*.png")).write_bytes(b"nothing")
    for flags, message in (
        (["--model", "ICNet", "--data_path", root], "no --cache; name the folder"),
        (["--model", "NoNet"], "argument --model"),
        (["--model", "ICNet", "--nonsense"], "--nonsense"),
        (["--model", "ICNet", "--data_path", tmp_path / "nowhere", "--cache", tmp_path / "c"], "nowhere"),
        (["--model", "ICNet", "--data_path", root, "--cache", tmp_path / "c"], "cannot decode the image"),
    ):
        with pytest.raises(SystemExit) as end:
            command.main(list(map(str, flags)))
        said = capsys.readouterr().err
        assert end.value.code == 2 and message in said and "Traceback" not in said
