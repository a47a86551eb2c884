"""common/record/tensors.py: damage to a file of tensors is found, and told where it is."""

import os
import zipfile

import pytest
import torch

from common.errors import InputError
from common.record import tensors as tensors_module
from common.record.tensors import Unusable, check_archive, load_tensors, named_tensors, not_finite

CONTENT = {
    "steps_done": 3,
    "model": {
        "empty": torch.zeros(0),
        "first.weight": torch.rand(50),
        "last": [torch.rand(7), torch.rand(2).expand(3, 2)],
    },
}


@pytest.fixture
def path(tmp_path):
    torch.save(CONTENT, tmp_path / "some.pt")
    return tmp_path / "some.pt"


def flip(path, member: str) -> None:
    """Change the first byte of what a member of the archive holds."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(next(name for name in archive.namelist() if name.endswith(member)))
        held = archive.read(info)
    content = bytearray(path.read_bytes())
    where = content.index(held, info.header_offset)
    content[where] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    "member, where",
    [("data/1", r"model\.first\.weight"), ("data/2", r"model\.last\.0"), ("data/3", r"model\.last\.1")],
)
def test_a_flipped_bit_is_found_and_its_tensor_named(path, member, where):
    flip(path, member)
    assert torch.load(path, weights_only=True)["steps_done"] == 3  # torch does not see it
    with pytest.raises(Unusable, match=rf"some\.pt is damaged in {where}, whose checksum is wrong; give another file"):
        load_tensors(path)


def test_damage_outside_of_tensors_is_found(path):
    flip(path, "data.pkl")
    with pytest.raises(Unusable, match=r"some\.pt is damaged in some/data\.pkl, whose checksum"):
        load_tensors(path)


def test_every_bit_of_every_member_counts(path, tmp_path):
    """Over the whole file, a byte in each hundred: found, or of no consequence (padding, dates)."""
    good, found = path.read_bytes(), 0
    for position in range(0, len(good), 100):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        try:
            content = load_tensors(path)
        except InputError:
            found += 1
        else:
            assert all(map(torch.equal, *([t for _, t in named_tensors(of)] for of in (content, CONTENT))))
            assert content["steps_done"] == 3
    assert found >= 5


def test_a_file_without_checksums_and_one_of_the_old_kind_are_read(tmp_path):
    """What torch.serialization.set_crc32_options(False) writes, and what torch wrote before version 1.6."""
    torch.save(CONTENT, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_tensors(tmp_path / "old.pt")["steps_done"] == 3
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "some.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "some.pt") as archive:
        assert archive.testzip()
    assert load_tensors(tmp_path / "some.pt")["steps_done"] == 3


@pytest.mark.parametrize(
    "error, words",
    [
        (PermissionError(13, "Permission denied"), r"no permission to read .*some\.pt; have its owner give it"),
        (OSError(21, "Is a directory"), r"some\.pt cannot be read \(Is a directory\); try again"),
        (
            OSError(116, "Stale file handle"),
            r"cannot read the checkpoint .*some\.pt \(Stale file handle, 1 t",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_not_called_damaged(path, monkeypatch, error, words):
    def refuse(*_):
        raise error

    monkeypatch.setattr(tensors_module, "open", refuse, raising=False)
    monkeypatch.setattr("common.data.files.WAIT_SECONDS", ())
    with pytest.raises(InputError, match=words) as raised:
        load_tensors(path)
    assert not isinstance(raised.value, Unusable)


def test_a_name_that_is_no_text_is_no_damage(path):
    other = path.rename(path.parent / os.fsdecode(b"stra\xdfe.pt"))
    assert load_tensors(other, mapped=True)["steps_done"] == 3


def test_what_was_written_is_read_back(path):
    check_archive(path)
    flip(path, "data/1")
    with pytest.raises(OSError, match="does not read as it was written"):
        check_archive(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match="does not read as it was written"):
        check_archive(path)


def test_values_that_are_not_finite_are_found(path):
    content = {"a": [torch.ones(3), {"b": torch.tensor([1.0, float("inf"), float("nan")])}], "n": torch.tensor(1)}
    assert not_finite(content) == "a.1.b (2 of 3 values)"
    assert not_finite(CONTENT) is None
