"""common/report/: the page of a run and of several, from the record of a real small run."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from ci.tests import small_folder
from ci.tests.logged import METRIC, open_log, whole_run
from ci.tests.small_folder import arguments, build, main
from common.report import at_end
from common.scores.gallery import MATRIX
from common.start import carry_out
from common.tools import compare
from common.tools.report import main as command

EVIL = "<script>alert('$x$')</script>"


class Page(HTMLParser):
    """sections: ids of its sections; tags; text: what is seen; addresses: values of href and src."""

    def __init__(self, html: str):
        super().__init__()
        self.sections, self.tags, self.text, self.addresses = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.sections += [values["id"]] if tag == "section" else []
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, which has written its page."""
    folder = tmp_path_factory.mktemp("report") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_REPORT")
        carry_out(main, build, arguments(folder, lr=0.25), small_folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, whose first class has a name that would be a script, with an example."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = tmp_path / "run"
    for path in finished.iterdir():
        if path.suffix in (".json", ".jsonl", ".log"):
            text = path.read_text().replace('"a": ', f"{json.dumps(EVIL)}: ")
            folder.mkdir(exist_ok=True)
            (folder / path.name).write_text(text)
    (folder / "examples").mkdir()
    Image.new("RGB", (3000, 40)).save(folder / "examples" / "worst_0.1250_street.png")
    Image.new("RGB", (700, 700)).save(folder / MATRIX)
    return folder


def read(path) -> Page:
    html = path.read_text()
    assert not re.search("(?:https?:)?//[a-z]", re.sub('base64,[^"]*', "", html)), "an external address"
    page = Page(html)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags
    return page


def test_the_page_has_the_numbers_of_the_run_and_nothing_from_elsewhere(run, capsys):
    command([str(run)])
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page, result = read(run / "report.html"), json.loads((run / "result.json").read_text())
    sections = ["result", "curves", "classes", "pictures", "waiting", "recipe", "environment"]
    assert page.sections == sections and page.tags.count("svg") >= 5
    for name in result["scores"]:
        assert f"{result[name]:.4f}" in page.text and name in page.text
    assert f"{result['images_per_second']:.2f}" in page.text and "finished" in page.text
    assert EVIL in page.text and f"{result['classes'][EVIL]['truth_pixels']:,}" in page.text
    assert "worst: IoU 0.1250" in page.text and 'width="1600"' in (run / "report.html").read_text()
    (with_letters,) = re.findall(
        r'<div class="scroll text"><img[^>]* alt="([^"]*)">', (run / "report.html").read_text()
    )
    assert with_letters.startswith("confusion matrix"), "it is not shrunk to the width of a phone"
    assert not re.search(r"\b(None|True|False)\b", page.text), "Python's words are not a reader's"
    assert "frequency_<wbr>weighted_<wbr>iou" in (run / "report.html").read_text()
    for row in ("--lr0.25command line", "--epochs2preset default", "--accumulate1default"):
        assert row in page.text, row


def test_a_run_ends_with_its_page_and_names_it(run, finished):
    assert (finished / "train.log").read_text().splitlines()[-1].endswith(f" : {finished / 'report.html'}")
    page = read(finished / "report.html")
    assert "State: finished after step 8." in " ".join(page.text.split()), "it is said while the run has its folder"
    assert "Final Performance images/sec" in page.text


def test_a_run_without_its_page_says_why_in_its_last_line_and_is_complete(tmp_path, monkeypatch):
    def last_line(name: str) -> str:
        whole_run(tmp_path / name)
        assert (tmp_path / name / "result.json").exists() and not (tmp_path / name / "report.html").exists()
        return (tmp_path / name / "train.log").read_text().splitlines()[-1]

    assert last_line("not wanted").startswith("E2E Training Duration")
    monkeypatch.delenv("NO_REPORT")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        line = "no report.html: it needs matplotlib; pip install -r common/requirements-report.txt, then "
        assert last_line("bare") == f"{line}python3 common/tools/report.py {tmp_path / 'bare'}"
    monkeypatch.setattr(at_end, "missing_packages", list)
    monkeypatch.setattr(at_end, "run_page", lambda record: [][0])
    assert (
        last_line("failed")
        == "warning: report.html is not written (list index out of range); the run itself is complete"
    )


def test_the_page_of_an_evaluation_has_no_curves(run, tmp_path):
    log = open_log(tmp_path / "scored", total=0)
    log.eval(METRIC)
    log.finish()
    command([str(tmp_path / "scored")])
    page = read(tmp_path / "scored" / "report.html")
    assert "curves" not in page.sections and "0.2500" in page.text and "loss at the end" not in page.text


def test_two_runs_are_compared(run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (other / name).write_text((run / name).read_text().replace('"lr": 0.25', '"lr": 0.125'))
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "eval"][-1]
    last["class_iou"]["b"] += 0.0625
    last["only_here"] = 0.375
    last["details"]["protocol"]["images"] += 1
    (other / "result.json").write_text(json.dumps({"scores": ["miou", "only_here"]}))
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command([str(run), str(other), "--output", str(tmp_path / "comparison.html")])
    page = read(tmp_path / "comparison.html")
    assert page.sections == ["runs", "scores", "differences", "curves", "classes"]
    assert "--lr" in page.text and "0.125" in page.text and "+0.0625" in page.text and EVIL in page.text
    assert "only_here" in page.text and "0.3750" in page.text
    assert f"{other} is scored on other pixels than {run} (images: " in page.text
    compare.main([str(run), str(other)])
    said = capsys.readouterr().out
    assert f"warning: {other} is scored on other pixels than {run} (images: " in said
    assert re.search(r"\nonly_here +-  +0\.3750\n", said)


def test_a_record_with_gaps_has_a_page(run):
    for name in ("result.json", "train.log"):
        (run / name).unlink()
    (run / "examples" / "worst_0.1250_street.png").write_bytes(b"cut off")
    (run / MATRIX).write_bytes(b"cut off")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    command([str(run)])
    page = read(run / "report.html")
    assert "pictures" not in page.sections and "ended without a word" in page.text
    (run / "metrics.jsonl").unlink()
    command([str(run)])
    assert "no line of a training" in read(run / "report.html").text


def test_what_cannot_be_written_is_a_line(run, monkeypatch, capsys):
    def refused(*words) -> str:
        with pytest.raises(SystemExit) as end:
            command(list(map(str, words)))
        assert end.value.code == 2
        return capsys.readouterr().err

    (run / "report.html").mkdir()
    assert "report.html cannot be written (Is a directory)" in refused(run)
    assert "2 runs, and no file for their comparison; give --output FILE" in refused(run, run)
    assert "holds no run and no folders of runs" in refused(run / "examples")
    assert "config.json is no name of a page" in refused(run, "--output", run / "config.json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "a report needs matplotlib: pip install -r common/requirements-report.txt" in refused(run)
