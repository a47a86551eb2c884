"""ci/docs.py: which commands of the documents it runs, and how it makes them short."""

import pytest

from ci.docs import left_out, main, of_the_command_alone, shortened
from ci.documents import ENGLISH, Document
from ci.tests.folders import FOLDERS, ROOT, module
from common.args import parse_args


@pytest.mark.parametrize(
    "command, reason",
    [
        ("python3 -m pip install -r requirements.txt", "the network"),
        ("srun --nodes=2 bash test/train_full_8p.sh", "Slurm"),
        ("bash test/train_full_1p.sh --device=npu", "an NPU or its software"),
        ("bash test/train_full_1p.sh --device=cpu --data_path=/path/to/cityscapes", None),
        ("python3 dataset.py", "the data set ISIC 2018"),
        ("python3 dataset.py --train_ratio=0.7", None),
    ],
)
def test_what_cannot_be_run_here_is_left_out_with_the_reason(command, reason):
    assert left_out(command) == reason


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
                assert (args.device, args.workers) == ("cpu", 0), line
                assert 0 < args.max_steps <= 30 and len(args.device_list or range(args.devices)) <= 4, line
    assert found > 30


def test_it_says_how_many_were_run_failed_and_left_out(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text(
        f"```bash\ncd {ROOT}\npython3 -c 'print(1)'\npython3 -c 'raise SystemExit(3)'\npip install x\n```\n"
    )
    assert main([str(document)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["run", "failed", "left", "1"]
    assert said[1].endswith("(exit code 3: )") and said[2].endswith("(the network)")
    assert said[-1] == "1 run, 1 failed, 1 left out"
