"""Attention U-Net and its relatives against the numbers of their reference implementation, and what is our own."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from AttentionUNet import presets
from AttentionUNet.model import (
    ARCHS,
    AttentionUNet,
    RecurrentConv,
    build_model,
    from_reference,
    training_loss,
)
from ci.tests.golden_case import GoldenCase

CASES = {
    "attu_net": {"arch": "AttU_Net"},
    "u_net": {"arch": "U_Net"},
    "r2u_net": {"arch": "R2U_Net", "t": 2},
    "r2attu_net": {"arch": "R2AttU_Net", "t": 3},
}
DTYPES = (torch.float64, torch.float32)


def empty_model(**options) -> AttentionUNet:
    """A model without values: no time is spent on initial ones."""
    with torch.device("meta"):
        return build_model(**options)


# ---- the reference's numbers


class Recorded:
    """A case of the reference, and our network with its weights."""

    def __init__(self, name: str):
        self.case = GoldenCase(name)
        self.names = self.case.reference_names(from_reference)
        self.model = empty_model(**CASES[name])
        self.model.load_state_dict(from_reference(self.case.state), strict=True, assign=True)

    def outputs(self, mode: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        model = self.model.to(dtype).train(mode == "train")
        logits = model(self.case.image(mode, dtype))
        logits = logits[0] if mode == "train" else logits
        return {"logits": logits, "prob": logits.sigmoid()}


@pytest.fixture(scope="module", params=CASES)
def recorded(request) -> Recorded:
    return Recorded(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eval_outputs(recorded, dtype):
    with torch.no_grad():
        recorded.case.assert_outputs("eval", recorded.outputs("eval", dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_training_step(recorded, dtype):
    """Outputs, loss, gradients and running statistics, with the reference's loss on probabilities beside ours."""
    case, model = recorded.case, recorded.model.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = recorded.outputs("train", dtype)
    statistics = {recorded.names[name]: value.clone() for name, value in model.state_dict().items()}
    target = case.labels()[:, 0]  # [B, H, W] float32, 0 and 1
    loss = training_loss((outputs["logits"],), target.long())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    model.load_state_dict(before)

    case.assert_outputs("train", outputs)
    case.assert_losses({"total": loss})
    case.assert_losses({"total": F.binary_cross_entropy(outputs["prob"], target[:, None].to(dtype))})
    names = [recorded.names[name] for name, _ in model.named_parameters()]
    case.assert_gradients(dict(zip(names, gradients, strict=True)))
    if dtype == torch.float64:
        case.assert_batch_norms(statistics)


# arch, t -> parameters, tensors of the checkpoint, fingerprint (mean, deviation, first, middle, last logit), loss
FINGERPRINTS = {
    ("AttU_Net", 3): (34_878_573, 240, [5.889116e-01, 4.890332e-02, 5.077599e-01, 6.058047e-01, 4.878064e-01], 0.736787),
    ("U_Net", 3): (34_527_041, 156, [6.449972e-01, 8.557025e-02, 5.228712e-01, 6.968296e-01, 4.823163e-01], 0.745520),
    ("R2U_Net", 3): (39_091_393, 174, [6.716994e-01, 8.792801e-01, -4.921277e-01, 1.071303e-01, 1.772194], 0.832526),
    ("R2U_Net", 2): (39_091_393, 174, [5.626969e-01, 8.713355e-01, -4.969097e-01, 4.754741e-02, 1.732892], 0.816674),
    ("R2AttU_Net", 3): (39_442_925, 258, [4.189049e-01, 5.423000e-01, -3.333488e-01, 4.593270e-01, 1.423813], 0.750772),
}
# parts of AttU_Net, by hand from the sizes of its layers
PARTS = {
    "encoder.0": 38_976,
    "encoder.1": 221_952,
    "encoder.2": 886_272,
    "encoder.3": 3_542_016,
    "encoder.4": 14_161_920,
    "decoder.0.up": 4_720_128,
    "decoder.1.up": 1_180_416,
    "decoder.2.up": 295_296,
    "decoder.3.up": 73_920,
    "decoder.0.gate": 263_939,
    "decoder.1.gate": 66_435,
    "decoder.2.gate": 16_835,
    "decoder.3.gate": 4_323,
    "decoder.0.conv": 7_080_960,
    "decoder.1.conv": 1_771_008,
    "decoder.2.conv": 443_136,
    "decoder.3.conv": 110_976,
    "classifier": 65,
}


def reference_name(name: str) -> str:
    """By hand: the name of one of our tensors in the reference."""
    kind, level, *rest = name.split(".")
    if kind == "classifier":
        return f"Conv_1x1.{level}"
    rest = ".".join(rest)
    down, up = int(level) + 1, 5 - int(level)
    residual = rest.removeprefix("conv.").replace("project.", "Conv_1x1.").replace("recurrent.", "RCNN.")
    residual = residual.replace(".unit.", ".conv.")
    is_residual = "RCNN" in residual or "Conv_1x1" in residual
    if kind == "encoder":
        return f"RRCNN{down}.{residual}" if is_residual else f"Conv{down}.conv.{rest}"
    if rest.startswith("up."):
        return f"Up{up}." + rest.replace("up.1", "up.2").replace("up.0", "up.1")
    if rest.startswith("gate."):
        return f"Att{up}." + rest.removeprefix("gate.").replace("w_", "W_")
    return f"Up_RRCNN{up}.{residual}" if is_residual else f"Up_conv{up}.conv." + rest.removeprefix("conv.")


def fingerprint_model(**options) -> AttentionUNet:
    """A model whose every tensor is drawn by its reference name, as those were that the fingerprints stand for."""
    model, state = empty_model(**options), {}
    for name, meta in model.state_dict().items():
        leaf, theirs = name.rpartition(".")[2], reference_name(name)
        random = np.random.RandomState(zlib.crc32(theirs.encode()))
        if leaf == "num_batches_tracked":
            value = np.zeros(meta.shape, np.int64)
        elif leaf == "running_var":
            value = 1 + random.random_sample(meta.shape)
        else:
            value = random.standard_normal(meta.shape)
            if meta.dim() >= 2:
                value *= np.sqrt(1 / np.prod(meta.shape[1:]))
            else:
                value = 0.1 * value + (leaf == "weight")
        state[theirs] = torch.from_numpy(np.asarray(value, np.int64 if leaf == "num_batches_tracked" else np.float32))
    model.load_state_dict(from_reference(state), strict=True, assign=True)
    return model.eval()


@pytest.mark.parametrize(("arch", "t"), FINGERPRINTS)
@torch.no_grad()
def test_fingerprint(arch, t):
    parameters, tensors, numbers, loss = FINGERPRINTS[arch, t]
    model = fingerprint_model(arch=arch, t=t)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    image = np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    logits = model(torch.from_numpy(image))
    assert logits.shape == (2, 1, 64, 64)
    found = (logits.mean(), logits.std(unbiased=False), logits[0, 0, 0, 0], logits[0, 0, 32, 32], logits[-1, 0, -1, -1])
    digits = {"rel": 3e-6, "abs": 3e-6}  # seven were recorded, in float32
    assert [number.item() for number in found] == pytest.approx(numbers, **digits)
    target = np.random.RandomState(1).random_sample((2, 1, 64, 64)).astype(np.float32)
    assert training_loss((logits,), torch.from_numpy(target)[:, 0]).item() == pytest.approx(loss, rel=3e-6)
