"""common/data/waiting.py: when a run is told that it waits for its data, and what it is told."""

import pytest

from common.data.waiting import DataWait, Reading, remedy

FREE, BUSY = {"cores": 16, "workers": 4}, {"cores": 16, "workers": 15}


@pytest.mark.parametrize(
    "facts, cause, words",
    [
        # cores that nobody uses come first, whatever else is known
        ({**FREE}, "workers", "--workers 8 instead of 4"),
        ({**FREE, "cached": True, "decoder": "imagecodecs"}, "workers", "--workers 8"),
        ({"cores": 6, "workers": 4}, "workers", "--workers 5 instead of 4"),
        ({"cores": 2, "workers": 0}, "workers", "--workers 1 instead of 0"),
        # one core is the training process's own
        ({"cores": 5, "workers": 4}, "decoding", "--cache DIR"),
        ({"cores": 1, "workers": 0}, "decoding", "--cache DIR"),
        ({**BUSY, "decoder": "imagecodecs"}, "decoding", "--cache DIR"),
        ({**BUSY, "first_epoch": False}, "decoding", "--cache DIR"),
        # a part of the images in the cache
        ({**BUSY, "cached": 0.4}, "share", "keeps 40% of the images, and the others are decoded each time: a larger"),
        # a cache that is being filled decodes as fast as it can
        ({**BUSY, "cached": True}, "decoder", "PNG files by Pillow: pip install imagecodecs"),
        ({**BUSY, "cached": True, "decoder": "cv2"}, "decoder", "by cv2: pip install imagecodecs"),
        # nothing is left but to do less
        ({**BUSY, "cached": True, "decoder": "imagecodecs"}, "cores", "the cores (16 for each process"),
        ({**BUSY, "cached": True, "first_epoch": False}, "cores", "smaller crops or fewer augmentations"),
    ],
)
def test_the_remedy_follows_from_the_facts(facts, cause, words):
    known = {"cached": False, "first_epoch": True, "decoder": "Pillow"}
    found, text = remedy(Reading(**known | facts))
    assert found == cause
    assert words in text
    assert "\n" not in text


def said(shares, cached=lambda step: False, stretch=10):
    """[(step, line)] of a run whose stretches of ten seconds waited for these shares of the time."""
    wait, lines = DataWait(), []
    for number, share in enumerate(shares, start=1):
        step = number * stretch
        reading = Reading(15, 16, cached(step), False, "Pillow")
        line = wait.advice(step, stretch, 10.0 * share, 10.0, lambda reading=reading: reading)
        if line:
            lines.append((step, line))
    return lines


def test_a_hundred_steps_are_looked_at_together():
    assert said([1.0] * 9) == []
    (first,) = said([0.0] * 6 + [0.75] * 4)
    assert first[0] == 100 and first[1].startswith("the last 100 steps waited for data 30% of the time: --cache")
    assert said([0.2] * 100) == []  # a fifth is no more than a fifth
    # each hundred for itself
    assert [step for step, _ in said([0.0] * 10 + [1.0] * 10)] == [200]


def test_the_same_advice_comes_again_after_a_thousand_steps_and_another_one_at_once():
    assert [step for step, _ in said([0.5] * 320)] == [100, 1100, 2100, 3100]
    changing = said([0.5] * 60, cached=lambda step: step > 300)
    assert [step for step, _ in changing] == [100, 400]
    assert "--cache" in changing[0][1] and "cores" in changing[1][1]


def test_the_facts_are_asked_for_only_when_they_matter():
    def never():
        raise AssertionError

    wait = DataWait()
    assert all(wait.advice(step, 100, 20.0, 100.0, never) is None for step in range(100, 1000, 100))
    assert wait.advice(1000, 100, 0.0, 0.0, never) is None  # a clock that stands still
