"""common/device/memory.py: how much memory a run has taken."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.device.memory import memory_in_use, resident_bytes


def test_the_memory_of_an_accelerator_is_the_most_that_tensors_took_of_it(monkeypatch):
    asked = []
    npu = SimpleNamespace(max_memory_allocated=lambda device: asked.append(device) or 5 << 29)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    device = SimpleNamespace(type="npu", index=3)
    assert memory_in_use(device) == ("device", 2.5)
    assert asked == [device]


def test_resident_memory_grows_with_what_is_held():
    before = resident_bytes()
    held = np.ones(512 << 20, np.uint8)  # touched, so that it is really there; other tests leave tens of MiB to free
    assert 400 << 20 < resident_bytes() - before < 560 << 20
    assert memory_in_use(torch.device("cpu")) == ("resident", pytest.approx(resident_bytes() / 2**30, rel=0.1))
    assert held.nbytes == 512 << 20


def test_the_memory_where_the_system_does_not_tell_is_the_most_that_was_held(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError

    now = resident_bytes()
    monkeypatch.setattr("builtins.open", refuse)
    assert resident_bytes() >= 0.9 * now
