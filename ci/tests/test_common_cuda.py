"""device/cuda.py: whether a card can be used. Nobody needs one for it: what torch says of cards is put in its mouth."""

import pytest
import torch

from common.device import cuda
from common.device.world import World, find_device_type, has_bfloat16, why_this_device
from common.errors import InputError

TORCH_2_11 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # flags of a wheel for CUDA 13


@pytest.fixture
def card(monkeypatch):
    """card((major, minor), flags that torch is built with): a machine with one card."""

    def make(capability: tuple[int, int], built_for: list[str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "GPU X")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
        monkeypatch.setattr(torch.version, "hip", None)

    return make


@pytest.mark.parametrize(
    ("capability", "built_for", "works"),
    [
        ((9, 0), TORCH_2_11, True),
        ((8, 9), TORCH_2_11, True),  # by the code of 8.6
        ((7, 5), TORCH_2_11, True),
        ((7, 0), TORCH_2_11, False),  # V100
        ((6, 1), TORCH_2_11, False),  # GTX 1080
        ((12, 1), TORCH_2_11, True),
        ((13, 0), TORCH_2_11, True),  # by code that the driver compiles
        ((12, 0), ["sm_80", "sm_86", "sm_90"], False),  # an RTX 5090 with a torch of before
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((11, 0), ["sm_100f"], False),
        ((6, 1), [], True),  # a build that says nothing
    ],
)
def test_a_card_needs_kernels_of_its_generation(card, capability, built_for, works):
    card(capability, built_for)
    assert (cuda.problem() is None) is works


def test_a_card_without_kernels_is_passed_over_by_auto_and_refused_in_words(card):
    card((6, 1), TORCH_2_11)
    assert find_device_type("auto") == "cpu"
    words = "has no kernels for GPU X (sm_61), only for sm_75 sm_80"
    assert words in why_this_device("cpu")
    with pytest.raises(InputError) as error:
        find_device_type("cuda")
    message = str(error.value)
    assert message.startswith("--device cuda cannot be used: ") and words in message and "--device cpu" in message
    assert "\n" not in message


def test_cards_of_amd_are_not_judged_by_these_flags(card, monkeypatch):
    card((9, 4), ["gfx942"])
    assert cuda.problem()
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert cuda.problem() is None


@pytest.mark.parametrize(
    ("capability", "there"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)]
)
def test_bfloat16_and_tf32_came_with_compute_capability_8(card, monkeypatch, capability, there):
    """On older cards torch computes bfloat16 by other means, which does not count."""
    card(capability, TORCH_2_11)
    device = torch.device("cuda", 3)
    assert has_bfloat16(World(device)) is there
    assert cuda.has_tf32(device) is there
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert has_bfloat16(World(device)) is True
    assert cuda.has_tf32(device) is False
