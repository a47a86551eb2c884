"""Several runs of a recipe: common/record/spread.py against NumPy, common/seeds.py with runs that only write scores."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ci.tests.folders import parsed
from common.errors import InputError
from common.record.spread import in_words, mean_of, means, read_group
from common.seeds import run_seeds
from common.tools import compare

ROOT = Path(__file__).resolve().parents[2]
# a script in the place of train.py: a run whose score depends on its seed
SCRIPT = """
import json, signal, sys, time
from pathlib import Path
flags = dict(word[2:].split("=") for word in sys.argv[1:])
folder, seed = Path(flags["output_dir"]), int(flags["seed"])
folder.mkdir(parents=True, exist_ok=True)
values = {"lr": flags["lr"], "seed": seed, "output_dir": str(folder)}
(folder / "config.json").write_text(json.dumps({"values": values}))
if flags["lr"] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    (folder / "waiting").touch()
    time.sleep(60)
score = float(flags["lr"]) + seed**2 / 100
rows = [{"kind": "eval", "miou": 0.0}, {"kind": "eval", "miou": score, "class_iou": {"car": score, "bus": None}}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows) + '{"kind": "ev')
(folder / "result.json").write_text(json.dumps({"scores": ["miou"]}))
sys.exit(int(flags.get("end", 0)))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start("name", lr=..., ...) -> what `run_seeds` returns for three runs below tmp_path/name."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def start(name: str, **flags) -> int:
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        return run_seeds(parsed("ICNet", output_dir=tmp_path / name, seeds=3, seed=5))

    return start


def test_runs_of_several_seeds_and_their_spread(start, tmp_path, capsys):
    assert start("a", lr=0.25) == 0
    scores = [0.25 + seed**2 / 100 for seed in (5, 6, 7)]
    summary = json.loads((tmp_path / "a" / "seeds.json").read_text())
    assert [row["miou"] for row in summary["scores"]] == pytest.approx(scores)
    for name in ("miou", "IoU car"):
        assert summary["means"][name]["mean"] == pytest.approx(np.mean(scores))
        assert summary["means"][name]["deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}" in capsys.readouterr().out

    assert start("b", lr=0.75) == 0
    capsys.readouterr()
    compare.main([str(tmp_path / name) for name in ("a", "b")])
    out = capsys.readouterr().out
    assert "--lr: 0.25, 0.75\n" in out and "seed" not in out.split("score", 1)[0].replace("seeds", "")
    assert "+0.5000 beyond the spread" in out
    compare.main([str(tmp_path / "a" / f"seed-{seed}") for seed in (5, 7)])
    out = capsys.readouterr().out
    assert "the same recipe" in out and "(+0.2400)" in out and "spread" not in out


def test_a_run_that_fails_ends_the_others_with_its_exit_code(start, tmp_path):
    assert start("a", lr=0.5, end=3) == 3
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["seed-5"]


def test_a_signal_reaches_the_run_that_is_at_work(tmp_path):
    script, folder = tmp_path / "train.py", tmp_path / "runs"
    script.write_text(SCRIPT)
    program = (
        "import sys; from ci.tests.folders import parsed; from common.seeds import run_seeds\n"
        f"sys.argv = [{str(script)!r}, '--lr=wait']\n"
        f"sys.exit(run_seeds(parsed('ICNet', output_dir={str(folder)!r}, seeds=2)))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not (folder / "seed-0" / "waiting").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 3 and not (folder / "seed-1").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"evaluate": 1, "checkpoint": "x.pt"}, "--evaluate trains nothing"),
        ({"validate": 0}, "--no_validate has none"),
        ({"resume": "last.pt"}, "give --resume auto"),
    ],
)
def test_several_seeds_of_what_is_no_training_are_refused(flags, match):
    with pytest.raises(InputError, match=match):
        run_seeds(parsed("ICNet", seeds=2, **flags))


def test_differences_are_called_more_than_chance_beyond_twice_their_standard_error():
    """Deviations of 0.1 in 4 and 0.2 in 16 runs: a standard error of sqrt(0.01 / 4 + 0.04 / 16) = 0.0707."""
    first, other = mean_of([0.5]), mean_of([0.6])
    assert in_words(first, other) == "+0.1000"
    assert in_words(first, first._replace(mean=first.mean - 1e-5)) == "+0.0000"
    first = first._replace(deviation=0.1, runs=4)
    assert in_words(first, other._replace(mean=0.64, deviation=0.2, runs=16)) == "+0.1400 within the spread"
    assert in_words(first, other._replace(mean=0.36, deviation=0.2, runs=16)) == "-0.1400 within the spread"
    assert in_words(first, other._replace(mean=0.35, deviation=0.2, runs=16)) == "-0.1500 beyond the spread"


def test_what_cannot_be_compared_is_refused(start, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        read_group(tmp_path)
    start("a", lr=0.25)
    config = tmp_path / "a" / "seed-6" / "config.json"
    config.write_text(config.read_text().replace("0.25", "0.5"))
    with pytest.raises(InputError, match=r"other recipes \(--lr\)"):
        read_group(tmp_path / "a")
    (tmp_path / "a" / "seed-7" / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="has no evaluation"):
        read_group(tmp_path / "a" / "seed-7")
    assert means(read_group(tmp_path / "a" / "seed-5"))["miou"].runs == 1
