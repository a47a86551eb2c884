"""common/args.py: presets, flags over them, spellings, refusals and --help."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ci.tests.folders import FOLDERS, module
from common.args import format_value, parse_args
from common.flags import EITHER_OR, FLAGS, OTHERWISE_NOW, RUN
from ICNet import presets as icnet

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "data_path": "data/city",
    "workers": "auto",
    "pretrained": "none",
    "load_from": "",
    "epochs": 3,
    "max_steps": 0,
    "device_batch_size": 4,
    "schedule": "poly",
    "lr": 0.5,
    "amp": None,
    "loss_scale": "dynamic",
    "devices": 1,
    "device_list": None,
    "distributed": None,
    "evaluate": False,
    "validate": True,
    "checkpoint": "output/fast/checkpoints/best.pt",
    "output_dir": None,
    "arch": "net",
}


@pytest.fixture
def presets(tmp_path):
    module = ModuleType("presets")
    module.__file__ = str(tmp_path / "Net" / "presets.py")
    module.PRESETS = {"default": SMALL, "fast": {**SMALL, "epochs": 1, "lr": 0.1}}
    module.ALIASES = {"init_lr": "lr", "batch_size": "device_batch_size", "train_batch_size": "device_batch_size"}
    module.CHOICES = {"arch": ["net", "other_net"]}
    return module


def refused(capsys, presets, *argv) -> str:
    """The one line on stderr with which `argv` is refused."""
    with pytest.raises(SystemExit) as ending:
        parse_args(presets, list(argv))
    out, err = capsys.readouterr()
    assert ending.value.code == 2
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


def test_the_first_preset_is_the_default(presets):
    args = parse_args(presets, [])
    assert args.preset == "default"
    assert (args.epochs, args.lr, args.amp, args.device_list, args.validate) == (3, 0.5, None, None, True)
    assert args.given == []


def test_another_preset_and_the_command_line_over_it(presets):
    args = parse_args(presets, ["--lr", "0.7", "--preset", "fast"])
    assert (args.preset, args.epochs, args.lr, args.device_batch_size) == ("fast", 1, 0.7, 4)
    assert args.given == ["lr"]


def test_the_last_preset_wins_as_a_launch_script_puts_its_own_first(presets):
    assert parse_args(presets, ["--preset", "default", "--preset=fast"]).epochs == 1


def test_a_flag_given_with_its_preset_value_counts_as_given(presets):
    assert parse_args(presets, ["--epochs", "3", "--no_validate"]).given == ["epochs", "validate"]


@pytest.mark.parametrize(
    "argv", [["--init_lr", "0.25"], ["--init-lr=0.25"], ["--lr=0.25"], ["--lr", "0.25"], ["--lr", "2.5e-1"]]
)
def test_aliases_and_ways_to_write_a_flag(presets, argv):
    args = parse_args(presets, argv)
    assert args.lr == 0.25
    assert args.given == ["lr"]


@pytest.mark.parametrize("flag", ["--device-batch-size", "--device_batch_size", "--device-batch_size", "--batch-size"])
def test_dash_and_underscore_are_the_same_in_a_flag(presets, flag):
    assert parse_args(presets, [flag, "6"]).device_batch_size == 6


def test_values_keep_their_dashes(presets):
    args = parse_args(presets, ["--data-path=my-data/a-b", "--output-dir", "run-1_x"])
    assert (args.data_path, args.output_dir) == ("my-data/a-b", "run-1_x")


@pytest.mark.parametrize("flag", ["--epoch", "--device_batch", "--valid", "--no_val", "--pre"])
def test_abbreviations_are_refused(capsys, presets, flag):
    assert flag in refused(capsys, presets, flag, "1")


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--colour", "red"], "--colour"),
        (["--opt_level", "O1"], "--opt_level"),  # in the vocabulary, and not in this folder's presets
        (["stray"], "stray"),
        (["--preset", "slow"], "slow"),
        (["--preset"], "--preset"),
        (["--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["--epochs", "-3"], "'-3' is not a whole number of at least 1"),
        (["--epochs", "1.5"], "'1.5' is not a whole number of at least 1"),
        (["--epochs", "many"], "'many' is not a whole number of at least 1"),
        (["--max_steps", "-2"], "'-2' is not a whole number of at least 0"),
        (["--lr", "-0.1"], "'-0.1' is not a finite number of at least 0"),
        (["--lr", "nan"], "'nan' is not a finite number of at least 0"),
        (["--lr", "inf"], "'inf' is not a finite number of at least 0"),
        (["--init_lr", "fast"], "'fast' is not a finite number of at least 0"),
        (["--workers", "-1"], "'-1' is not a whole number of at least 0"),
        (["--workers", "all"], "'all'"),
        (["--loss_scale", "0"], "'0' is not 'dynamic'"),
        (["--loss_scale", "-2"], "'-2' is not 'dynamic'"),
        (["--loss_scale", "static"], "'static' is not 'dynamic'"),
        (["--device_list", "0,x"], "'0,x' is no list of device numbers"),
        (["--device_list", "0,,1"], "'0,,1' is no list"),
        (["--device_list", "-1"], "'-1' is no list"),
        (["--device_list", ""], "'' is no list"),
        (["--schedule", "linear"], "linear"),
        (["--arch", "icnet"], "icnet"),
        (["--amp", "maybe"], "'maybe' is neither true nor false"),
        (["--no_amp=1"], "--no_amp"),
        (["--distributed", "2"], "2"),
        (["--lr"], "--lr"),
    ],
)
def test_what_is_refused_is_named_in_one_line_with_exit_code_2(capsys, presets, argv, named):
    line = refused(capsys, presets, *argv)
    assert named in line
    assert "error: " in line
    assert "--help" in line


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--trainbatchsize=3", "did you mean --train_batch_size?"),
        ("--learn_rate", None),
        ("--epoch", "did you mean --epochs?"),
        ("--devicelist", "did you mean --device_list?"),
        ("--batchsize=3", "did you mean --batch_size?"),
        ("--profiling=CANN", "use --prof or --prof_test, and --prof_steps"),
        ("--start-step=3", "--prof profiles after 20 steps, --prof_test after 5"),
        ("--stop_step=9", "--prof_steps says how many steps are profiled"),
        ("--options=lr=1", "give each value as a flag of its own, or several in a JSON file with --config"),
        ("--launcher", "leave it out; --devices, --nnodes and torchrun or srun start several processes"),
        ("stray", None),
    ],
)
def test_a_flag_that_there_is_not_gets_a_hint_at_the_one_that_is_meant(capsys, presets, word, hint):
    line, shown = refused(capsys, presets, word), word.replace("-", "_").replace("__", "--", 1)
    expected = f"; {shown.partition('=')[0]}: {hint}" if hint else ""
    assert line.endswith(f"error: unrecognized arguments: {shown}{expected}; see --help\n")


@pytest.mark.parametrize("folder", FOLDERS)
def test_hints_name_flags_that_there_are_and_no_folder_takes_what_they_are_about(folder):
    presets = module(folder, "presets")
    known = presets.BASE.keys() | presets.ALIASES
    assert not known & OTHERWISE_NOW.keys()
    named = {flag for hint in OTHERWISE_NOW.values() for flag in re.findall(r"--(\w+)", hint)}
    assert len(named) > 5 and named <= known


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "few"])
def test_counts_of_which_there_is_at_least_one(capsys, value):
    flags = "base_size epochs device_batch_size eval_batch_size eval_every_epochs log_every_steps"
    for name in f"{flags} devices nnodes".split():
        assert f"'{value}' is not a whole number of at least 1" in refused(capsys, icnet, f"--{name}={value}")
        assert getattr(parse_args(icnet, [f"--{name}=1"]), name) == 1


@pytest.mark.parametrize("text, size", [("960", (960, 960)), ("512x1024", (512, 1024)), ("64X32", (64, 32))])
def test_sizes_are_a_number_or_height_by_width(text, size):
    assert parse_args(icnet, [f"--crop_size={text}"]).crop_size == size
    assert format_value(size).lower() == text.lower()


@pytest.mark.parametrize("text", ["0", "0x5", "5x", "x", "1x2x3", "12.5", "wide"])
def test_what_is_no_size_is_refused(capsys, text):
    assert f"'{text}' is neither a number nor HEIGHTxWIDTH" in refused(capsys, icnet, f"--crop_size={text}")


@pytest.mark.parametrize("name", "warmup_epochs node_rank save_every_steps workers".split())
def test_counts_that_may_be_zero(capsys, name):
    assert getattr(parse_args(icnet, [f"--{name}", "0"]), name) == 0
    assert "'-1' is not a whole number of at least 0" in refused(capsys, icnet, f"--{name}", "-1")
    assert parse_args(icnet, ["--max_steps", "0"]).max_steps == parse_args(icnet, ["--max_steps=-1"]).max_steps == 0


def test_seeds_and_ports_have_an_end(capsys):
    assert parse_args(icnet, ["--seed", str(2**32 - 1), "--master_port", "65535"]).seed == 2**32 - 1
    assert parse_args(icnet, ["--seed", "0", "--master_port", "1"]).master_port == 1
    for name, value in (("seed", 2**32), ("seed", -1), ("master_port", 65536), ("master_port", 0)):
        assert f"'{value}' is not " in refused(capsys, icnet, f"--{name}={value}")


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--amp"], True),
        (["--amp", "1"], True),
        (["--amp=TRUE"], True),
        (["--amp", "yes"], True),
        (["--amp", "0"], False),
        (["--amp=False"], False),
        (["--amp", "off"], False),
        (["--no_amp"], False),
        (["--no-amp"], False),
        (["--no_amp", "--amp"], True),
        (["--amp", "--no_amp"], False),
        ([], None),
    ],
)
def test_a_switch_and_its_opposite(presets, argv, expected):
    assert parse_args(presets, argv).amp is expected


def test_a_switch_before_another_flag_takes_no_value(presets):
    args = parse_args(presets, ["--evaluate", "--epochs", "2"])
    assert (args.evaluate, args.epochs) == (True, 2)


def test_types_of_values(presets):
    args = parse_args(presets, "--device_list 0,3,1 --workers 2 --loss_scale -1 --distributed --arch other_net".split())
    assert args.device_list == [0, 3, 1]
    assert (args.workers, args.loss_scale, args.distributed, args.arch) == (2, "-1", 1, "other_net")
    args = parse_args(presets, ["--device-list=0, 1", "--workers", "auto", "--loss_scale=128", "--distributed", "0"])
    assert args.device_list == [0, 1]
    assert (args.workers, args.loss_scale, args.distributed) == ("auto", "128", 0)


def test_paths_of_a_preset_start_in_its_folder_and_those_of_the_user_where_the_user_is(presets, tmp_path):
    folder = tmp_path / "Net"
    args = parse_args(presets, ["--preset", "fast"])
    assert args.data_path == str(folder / "data/city")
    assert args.checkpoint == str(folder / "output/fast/checkpoints/best.pt")
    assert args.output_dir == str(folder / "output/fast")
    assert (args.pretrained, args.load_from) == ("none", "")
    given = parse_args(presets, "--data_path ./here --checkpoint ../x.pt --output_dir out --pretrained p".split())
    assert (given.data_path, given.checkpoint, given.output_dir, given.pretrained) == ("./here", "../x.pt", "out", "p")


def test_the_embedded_sample_is_no_path(presets):
    presets.PRESETS["fast"] = {**SMALL, "data_path": "sample"}
    assert parse_args(presets, ["--preset", "fast"]).data_path == "sample"


def test_help_groups_by_topic_lists_aliases_and_the_defaults_of_the_chosen_preset(capsys, presets):
    with pytest.raises(SystemExit) as ending:
        parse_args(presets, ["--preset", "fast", "--help"], description="100 % of it")
    out, err = capsys.readouterr()
    assert (ending.value.code, err) == (0, "")
    headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    topics = [topic for topic, flags in FLAGS.items() if flags.keys() & SMALL.keys()]
    assert [heading for heading in headings if heading in FLAGS] == topics
    entries = " ".join(out.split())
    assert "100 % of it" in entries
    # argparse names the value once behind all spellings, or, before Python 3.13, behind each of them
    is_once = sys.version_info >= (3, 13)
    lr = "--lr, --init_lr NUMBER" if is_once else "--lr NUMBER, --init_lr NUMBER"
    assert f" {lr} initial learning rate; default: 0.1" in entries
    size = "--device_batch_size, --batch_size," if is_once else "--device_batch_size N, --batch_size N,"
    assert f" {size} --train_batch_size N" in entries
    assert "--validate [0|1] evaluate during training; default: True; off: --no_validate" in entries
    assert "--opt_level" not in entries  # not a flag of this folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_value_of_a_preset_is_one_that_its_own_flag_accepts(folder):
    presets = module(folder, "presets")
    kinds = {name: kind for flags in FLAGS.values() for name, (kind, _) in flags.items()}
    for preset, values in presets.PRESETS.items():
        assert values.keys() == presets.BASE.keys() <= kinds.keys()
        argv = ["--preset", preset]
        for name, value in values.items():
            argv += [f"--{name}={format_value(value)}"] if value is not None else []
        again = parse_args(presets, argv)
        for name, value in values.items():
            if value is not None:
                assert getattr(again, name) == value, (preset, name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_aliases_name_flags_and_hide_none(folder):
    presets = module(folder, "presets")
    for meaning in presets.ALIASES.values():
        assert set(meaning if isinstance(meaning, dict) else [meaning]) <= presets.BASE.keys()
    assert not presets.ALIASES.keys() & presets.BASE.keys()
    assert set(RUN) <= presets.BASE.keys()


@pytest.mark.parametrize("one, other", EITHER_OR)
def test_one_number_in_two_units_is_given_in_one(capsys, one, other):
    presets = ModuleType("presets")
    presets.__file__ = icnet.__file__
    presets.PRESETS, presets.ALIASES = {"default": {**icnet.BASE, one: 1, other: 1}}, {"spelled": other}
    assert getattr(parse_args(presets, [f"--{one}=2"]), one) == 2
    assert f"--{one} and --{other} say the same" in refused(capsys, presets, f"--{one}=2", "--spelled=3")


def test_a_spelling_may_stand_for_flags_with_their_values(capsys):
    presets = ModuleType("presets")
    presets.__file__ = icnet.__file__
    presets.PRESETS = {"default": {**icnet.BASE, "validate": True}}
    presets.ALIASES = {
        "skip_val": {"validate": False}, "no_cuda": {"device": "cpu"}, "fp32": {"amp": False, "hf32": False},
    }  # fmt: skip
    args = parse_args(presets, ["--skip-val", "--no_cuda"])
    assert (args.validate, args.device) == (False, "cpu")
    assert parse_args(presets, []).validate is True
    assert parse_args(presets, ["--skip_val", "--validate"]).validate is True, "the last word counts"
    refused(capsys, presets, "--skip_val=1")
    args = parse_args(presets, ["--hf32", "--fp32"])
    assert (args.amp, args.hf32) == (False, False)
    assert {"amp", "hf32"} <= set(args.given)
    args = parse_args(presets, ["--fp32", "--hf32"])
    assert (args.amp, args.hf32) == (False, True), "the last word counts"


def test_a_config_stands_between_the_preset_and_the_command_line(tmp_path):
    file = tmp_path / "config.json"
    run = parse_args(icnet, "--preset full_8p --crop_size=64x32 --scales=0.5,1 --lr=0.3 --amp=0 --output_dir=x".split())
    run.resume, run.device_list, run.workers = "auto", [3], 7
    file.write_text(json.dumps({"values": {**vars(run), "started": 1.5}, "environment": {}}))
    again = parse_args(icnet, [f"--config={file}", "--epochs=9"])
    assert (again.preset, again.given) == ("full_8p", ["config", "epochs"])
    assert again.origins["lr"] == "config file" and "epochs" not in again.origins
    assert (again.epochs, again.lr, again.amp, again.devices, again.hf32) == (9, 0.3, False, 8, None)
    assert (again.crop_size, again.scales, again.data_path) == ((64, 32), [0.5, 1.0], run.data_path)
    assert (again.resume, again.device_list, again.workers) == ("", None, "auto")
    assert again.output_dir.endswith("ICNet/output/full_8p")
    other = parse_args(icnet, [f"--config={file}", "--preset=full_1p", "--lr=0.2"])
    assert (other.preset, other.lr, other.device_batch_size) == ("full_1p", 0.2, run.device_batch_size)
    file.write_text(json.dumps({"init-lr" if "init_lr" in icnet.ALIASES else "lr": 0.4, "validate": False}))
    assert (parse_args(icnet, ["--config", str(file)]).lr, parse_args(icnet, ["--config", str(file)]).validate) == (
        0.4, False,
    )  # fmt: skip


def test_a_length_on_the_command_line_takes_the_place_of_the_one_in_a_config(tmp_path):
    bisenet = module("BiSeNetv1", "presets")
    file = tmp_path / "config.json"
    file.write_text('{"epochs": 7, "lr": 0.5}')
    assert parse_args(bisenet, [f"--config={file}"]).epochs == 7
    args = parse_args(bisenet, [f"--config={file}", "--total_steps=3"])
    assert (args.epochs, args.total_steps, args.lr) == (bisenet.BASE["epochs"], 3, 0.5)


@pytest.mark.parametrize(
    "content, named",
    [
        ('{"lr": "fast"}', "--lr"),
        ('{"lr": null}', "--lr cannot be null"),
        ('{"lr": {"a": 1}}', "--lr cannot be"),
        ('{"values": {"total_batch_size": null}}', "is no flag of this model; give the config.json of a run of the"),
        ('{"batchsize": 3}', "--batchsize"),
        ('{"values": {"lr": -1}}', "'-1' is not a finite number"),
        ('{"work_dir": "x"}', "--output_dir is of one run or machine"),
        ('{"preset": "slow"}', "there is no preset slow"),
        ("[1]", "names no flags"),
        ("{", "it is no JSON"),
        (None, "No such file"),
    ],
)
def test_what_a_config_cannot_say_is_one_line_with_file_and_flag(capsys, tmp_path, content, named):
    file = tmp_path / "recipe.json"
    if content is not None:
        file.write_text(content)
    line = refused(capsys, icnet, f"--config={file}")
    assert f"--config {file}" in line and named in line


def test_flags_are_answered_without_importing_torch():
    code = (
        "import sys; from common.args import parse_args; from ICNet import presets; "
        "args = parse_args(presets, ['--preset', 'full_8p', '--init_lr', '0.2']); "
        "print(args.lr, args.devices, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "0.2 8 False False\n", run.stderr


def test_a_momentum_of_one_is_refused(capsys):
    assert "'1' is not a number of at least 0 and below 1" in refused(capsys, icnet, "--momentum", "1")


def test_an_old_python_is_told_so_in_one_line():
    """Its own words for it would be a page about an annotation."""
    code = "import sys; sys.version_info = (3, 9, 18, 'final', 0); sys.version = '3.9.18 (main)'; import common.args"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this is Python 3.9.18, and Python 3.10 or newer is needed; ")
    assert done.stderr.count("\n") == 1
