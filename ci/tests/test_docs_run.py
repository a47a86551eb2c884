"""ci/docs.py: which commands of the documents it runs, how it makes them short, and what it says."""

import fcntl
import os

import pytest
import torch

import ci.docs
import ci.stand_ins
from ci.docs import left_out, main, of_the_command_alone, shortened
from ci.documents import ENGLISH, Document
from ci.stand_ins import StandIns
from ci.tests.folders import FOLDERS, ROOT, module
from common.args import parse_args
from common.errors import ExitCode
from common.tools import benchmark


@pytest.mark.parametrize(
    "command, reason",
    [
        ("python3 -m pip install -r requirements.txt", "the network"),
        ("srun --nodes=2 bash test/train_full_8p.sh", "Slurm"),
        ("python3 -m common.tools.benchmark train --model ICNet --device cuda", "a CUDA device"),
        ("python3 -m pytest ci/tests/test_contract.py", "many minutes; a test by itself"),
        ("python3 -m pytest ci/tests/test_contract.py -k ICNet", None),
        ("bash test/train_full_1p.sh --device=cpu --data_path=/path/to/cityscapes", None),
        ("bash test/train_eval_1p.sh --checkpoint=/path/to/iter_160000.pth", None),
        ("python3 dataset.py", None),
    ],
)
def test_what_cannot_be_run_here_is_left_out_with_the_reason(command, reason):
    assert left_out(command) == reason


def test_what_a_package_is_missing_for_is_left_out(monkeypatch):
    monkeypatch.setattr(ci.docs, "find_spec", lambda name: name != "onnxruntime")
    assert left_out("python3 predict.py --checkpoint=icnet.onnx") == "the packages onnx and onnxruntime"
    assert left_out("python3 ci/smoke.py ICNet") is None


def test_every_training_in_the_documents_becomes_a_few_steps_on_the_cpu():
    found = 0
    for path in ENGLISH:
        for line, folder, words in Document(path).commands():
            more = shortened(folder, words)
            if left_out(" ".join(words)) or not any(word.startswith("--max_steps") for word in more):
                continue
            found += 1
            script = next(index for index, word in enumerate(words) if word.endswith(("train.py", ".sh")))
            name = words[script].rpartition("train_")[2].removesuffix(".sh")
            preset = [] if words[script].endswith("train.py") else [f"--preset={name}"]
            model = folder.name if folder.name in FOLDERS else "ICNet"
            if "quickstart" not in name:
                args = parse_args(
                    module(model, "presets"), [*preset, *of_the_command_alone(words[script + 1 :]), *more]
                )
                workers = int(words[words.index("--workers") + 1]) if "--workers" in words else 0
                assert (args.device, args.workers) == ("npu" if "npu" in line else "cpu", workers), line
                assert 0 < args.max_steps <= 30 and len(args.device_list or range(args.devices)) <= 4, line
    assert found > 30


def test_a_benchmark_of_a_thousand_steps_becomes_one_of_two():
    words = "python3 -m common.tools.benchmark train --model ICNet --steps 1000".split()
    own = benchmark.parse([*words, *shortened(ROOT, words)][3:])[1]
    assert (own.steps, own.repetitions) == (2, 1)


def test_weights_of_others_decide_the_network():
    words = "python3 train.py --data_path=/path/to/cityscapes".split()
    assert "--backbone=resnet18" in shortened(ROOT / "DeeplabV3", words)
    more = shortened(ROOT / "DeeplabV3", [*words, "--load_from=/path/to/deeplabv3.pth"])
    assert not any(word.startswith("--backbone") for word in more) and "--base_size=64" in more


def test_what_stands_for_the_reader_s_own_is_what_the_models_read(tmp_path, monkeypatch):
    """Pictures in every layout, SBD's masks beside VOC's, and a file of another program under its own names."""
    monkeypatch.setattr(ci.stand_ins, "IMAGES", {"train_images": 10, "val_images": 2})
    stand_ins = StandIns(tmp_path / "tree", tmp_path / "places", shortened)

    def place(word: str, model: str, *more: str) -> str:
        return stand_ins.words([word, *more], model)[0]

    find_pairs = module("DynamicUNet", "voc").find_pairs
    voc = place("/path/to/VOCdevkit", "DynamicUNet")
    assert (len(find_pairs(voc, "train")), len(find_pairs(voc, "train", "pascal_aug"))) == (2, 10)
    assert place("/path/to/camvid", "ICNet").endswith("cityscapes")
    assert place("/path/to/camvid", "ICNet", "--preset=own").endswith("folder")
    assert len(list((stand_ins.scratch / "folder" / "masks").iterdir())) == 10
    assert place("--output=/path/to/results", "ICNet") == f"--output={stand_ins.scratch}/results"
    path = place("--checkpoint=/path/to/iter_160000.pth", "BiSeNetv1").partition("=")[2]
    found = module("BiSeNetv1", "weights").from_reference(torch.load(path, weights_only=True))
    assert found.kind.startswith("BiSeNetV1 of mmsegmentation") and len(found) > 200


def test_it_says_how_many_were_run_failed_and_left_out(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text(
        f"```bash\ncd {ROOT}\npython3 -c 'print(1)'\npython3 -c 'raise SystemExit(3)'\npip install x\n```\n"
    )
    assert main([str(document)]) == ExitCode.FAILED
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:3]] == [["1/3", "run"], ["2/3", "failed"], ["3/3", "left"]]
    assert said[1].endswith("(exit code 3: )") and said[2].endswith("(the network)")
    assert said[3].startswith("3 commands, 1 run, 1 failed, 1 left out, in ")
    assert said[4] == "left out: 1 for the network" and said[5].startswith("failed: ") and len(said) == 6


def test_a_document_that_is_not_there_is_named_in_one_line(capsys):
    assert main(["nowhere.md"]) == ExitCode.INPUT
    assert capsys.readouterr().err.count("\n") == 1


def test_a_command_that_does_not_end_is_ended_with_what_it_has_started(tmp_path, monkeypatch):
    monkeypatch.setattr(ci.docs, "LIMIT_S", 0.3)
    script = "exec 9>lock; flock 9; sleep 200 & wait"  # the lock is the child's too
    assert ci.docs._finished(["bash", "-c", script], tmp_path, dict(os.environ)) == "not done after 0.3 s"
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
