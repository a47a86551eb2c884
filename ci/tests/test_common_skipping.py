"""common/data/skipping.py: what cannot be read is replaced in the same way by whoever reads, and listed."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ci.tests.common_workers import Keyed, world
from ci.tests.folders import carry_out, command_line, module
from ci.tests.runs import assert_same_state, in_two_processes, last_checkpoint
from ci.tests.test_own_data import folder_of
from common.args import parse_args
from common.data.loading import batches
from common.data.order import StepRange, StepSampler
from common.data.skipping import Skips, candidates
from common.device.launch import leave_done
from common.device.relay import CHECKED, Relay
from common.errors import ExitCode, InputError
from common.start import launch

BROKEN = (2, 3, 7)


def begun(most: int, folder: Path, said: list, dataset=None, where=None) -> Skips:
    skips = Skips(most)
    skips.begin(dataset or Keyed(8, BROKEN), where or world(), said.append, folder, continues=False)
    return skips


def test_the_next_sample_takes_the_place_with_any_number_of_workers(tmp_path):
    steps = StepRange(4, seed=0, first_step=1, total_steps=5)
    order = [[index for _, index in step] for step in StepSampler(8, steps, world())]
    expected = [[{2: 4, 3: 4, 7: 0}.get(index, index) for index in step] for step in order]
    for workers in (0, 2):
        said: list[str] = []
        skips = begun(3, tmp_path, said)
        stream = batches(Keyed(8, BROKEN), steps, world(), workers, skips)
        assert [(images[:, 0, 0, 0] / 1.5).int().tolist() for _, images, _ in stream] == expected
        assert sorted(skips.found) == [2, 3, 7] and len(said) == 3
        assert (
            "sample 7 is replaced by the next one that can be read: image 7.png cannot be read; copy it again" in said
        )
        assert json.loads((tmp_path / "skipped.json").read_text()).keys() == {"2", "3", "7"}


def test_one_more_than_allowed_ends_the_run(tmp_path):
    steps = StepRange(8, seed=0, first_step=0, total_steps=2)
    with pytest.raises(InputError, match=r"image \d\.png .*; 2 others were replaced before, as --skip_bad 2 allows"):
        list(batches(Keyed(8, BROKEN), steps, world(), 0, begun(2, tmp_path, [])))


def test_a_sample_has_no_more_candidates_than_there_are():
    assert list(candidates((5, 6), 8, 3)) == [(5, 6), (5, 7), (5, 0), (5, 1)]
    assert list(candidates((0, 0), 2, 9)) == [(0, 0), (0, 1)] and list(candidates(4, 8, 3)) == [4]


def share_what_each_has_found(folder: Path) -> None:
    from common.device.world import setup

    where = setup("cpu")
    said: list[str] = []
    skips = begun(3, folder / str(where.rank), said, where=where)
    skips.take([(BROKEN[where.rank], "seen here")])
    reasons = skips.share()
    skips.take([(BROKEN[2], "the last")] if where.rank else [])
    skips.most = 2
    try:
        skips.share()
        ended = ""
    except InputError as error:
        ended = str(error)
    torch.save((reasons, ended, len(said)), folder / f"{where.rank}.pt")
    torch.distributed.barrier()
    os._exit(0)


def test_processes_know_together_what_each_has_found(tmp_path):
    in_two_processes(tmp_path, share_what_each_has_found, tmp_path)
    (first, first_end, _), (second, second_end, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == ["seen here", "image 3.png cannot be read; copy it again"]
    assert second == ["image 2.png cannot be read; copy it again", "seen here"]
    assert "as --skip_bad 2 allows" in first_end


def test_a_run_goes_on_without_bad_files_lists_them_and_is_continued_alike(tmp_path, capsys):
    root = folder_of(tmp_path / "data", count=10)
    train = (
        module("AttentionUNet", "data")
        .build_datasets(
            parse_args(module("AttentionUNet", "presets"), ["--preset=own", f"--data_path={root}", "--device=cpu"])
        )
        .train
    )
    (bad_image, _), (_, bad_mask) = train.pairs[2], train.pairs[5]
    bad_image.write_bytes(bad_image.read_bytes()[:200])
    Image.new("L", (80, 64), 9).save(bad_mask)
    flags = {"preset": "tiny", "dataset": "folder", "data_path": root, "device": "cpu", "workers": 0, "check_data": 1}
    flags |= {"max_steps": 6, "epochs": 2, "device_batch_size": 2, "image_size": 64, "base_channels": 8}
    flags["cache"] = tmp_path / "cache"
    (root / "classes.json").write_text(
        json.dumps({"classes": [{"name": name, "ids": [number]} for number, name in enumerate("abc")]})
    )
    with pytest.raises(InputError, match="unpack or download it again|values"):
        carry_out("AttentionUNet", output_dir=tmp_path / "refused", **flags, skip_bad=1)
    whole = carry_out("AttentionUNet", output_dir=tmp_path / "whole", **flags, skip_bad=2)
    assert whole["skipped_samples"] == 2 and str(bad_image) in "".join(whole["skipped"])
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["skipped"] == whole["skipped"]
    assert "2 training samples could not be read and were replaced; result.json lists them" in capsys.readouterr().out
    carry_out("AttentionUNet", output_dir=tmp_path / "run", **{**flags, "max_steps": 4}, skip_bad=2)
    words = command_line(output_dir=tmp_path / "run", resume="auto", **flags, skip_bad=2)
    presets, script = module("AttentionUNet", "presets"), module("AttentionUNet", "train")
    with pytest.raises(SystemExit) as end:  # as the script does it
        launch(script.main, script.build, parse_args(presets, words), presets)
    assert end.value.code == ExitCode.OMISSIONS
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == whole["skipped"]
    assert_same_state(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))


def test_processes_of_one_run_leave_the_exit_code_to_the_one_that_started_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "exit", lambda code: pytest.fail(f"exit code {code}"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    leave_done({"skipped_samples": 1})  # in a torchrun of the user's own
    monkeypatch.setenv(CHECKED, str(tmp_path))
    leave_done({})
    assert not Relay(tmp_path).has_omitted
    leave_done({"skipped_samples": 1})
    assert Relay(tmp_path).has_omitted
