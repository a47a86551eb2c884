"""ci/predictions.py: the picture at the top of README.md."""

import pytest
from PIL import Image

from ci.predictions import GAP, PICTURE, WIDTH, main
from ci.tests.folders import ROOT


def test_the_median_examples_stand_one_below_the_other(tmp_path):
    for name, colour, size in (("a", (200, 0, 0), (300, 50)), ("b", (0, 0, 200), (90, 30))):
        (tmp_path / name / "examples").mkdir(parents=True)
        for place, shade in (("best", (9, 9, 9)), ("median", colour), ("worst", (9, 9, 9))):
            Image.new("RGB", size, shade).save(tmp_path / name / "examples" / f"{place}_0.5000_x.png")
    main([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (WIDTH, 150 + GAP + 300)
    assert sheet.getpixel((5, 149)) == (200, 0, 0) and sheet.getpixel((899, 150 + GAP)) == (0, 0, 200)
    with pytest.raises(SystemExit, match="name a finished run"):
        main([str(tmp_path)], tmp_path / "sheet.png")


def test_the_picture_of_the_readme_is_small():
    assert PICTURE.stat().st_size < 150_000
    for name in ("README.md", "README.zh.md"):
        assert f"({PICTURE.relative_to(ROOT)})" in (ROOT / name).read_text(encoding="utf-8")
