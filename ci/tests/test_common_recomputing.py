"""--checkpoint_activations: the same step, bit for bit, with less that is kept for the way back."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests import small_folder
from ci.tests.folders import FOLDERS
from ci.tests.runs import assert_same_state, in_two_processes, last_checkpoint
from ci.tests.small_folder import arguments
from ci.tests.test_common_freezing import build as build_with_encoder
from ci.tests.test_training_step import Case
from common.errors import InputError
from common.run import Run
from common.start import carry_out
from common.step.norm import CpuSyncBatchNorm
from common.step.recomputing import recomputed


class Kept:
    """Bytes that are kept for the way back, between the forward pass of the network and its end."""

    def __init__(self):
        self.storages: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def bytes_of(self, case: Case, network: nn.Module) -> tuple[torch.Tensor, int]:
        """(The loss of a step, what its network keeps besides its weights.)"""
        weights = {weight.untyped_storage().data_ptr() for weight in case.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            outputs = network(case.images)
        kept = sum(size for where, size in self.storages.items() if where not in weights)
        return sum(case.training_loss(outputs, case.target).values()), kept


@pytest.mark.parametrize("folder", FOLDERS)
def test_gradients_and_statistics_are_those_of_the_network_itself(folder):
    """In every folder, with its dropout."""
    case = Case(folder)
    for layer in case.model.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.5
    plain = copy.deepcopy(case.model)
    network, note = recomputed(case.model, case.model, case.world, case.images.shape, None)
    assert "blocks are computed again" in note and network is not case.model and network.training
    results = []
    for model, step in ((plain, plain), (case.model, network)):
        torch.manual_seed(1)
        loss, kept = Kept().bytes_of(case, step)
        loss.backward()
        results.append((loss, kept, torch.rand(1), dict(model.named_parameters()), model.state_dict()))
    (loss, kept, drawn, weights, state), (our_loss, our_kept, our_drawn, our_weights, our_state) = results
    assert torch.equal(loss, our_loss) and torch.equal(drawn, our_drawn)
    assert our_kept < 0.3 * kept
    for name, weight in weights.items():
        assert torch.equal(weight.grad, our_weights[name].grad), name
    for name, value in state.items():
        assert torch.equal(value, our_state[name]), name


def with_dropout(args, run):
    """The encoder of the network in small, the one block of it, draws too."""
    data, model = build_with_encoder(args, run)
    model.encoder.append(nn.Dropout2d(0.5))
    return data, model


def as_one_of_two(output_dir: Path, flags: dict) -> None:
    run = Run(arguments(output_dir, sync_bn=1, validate=0, **flags), small_folder, 2)
    data, model = run.build(with_dropout)
    run.join()
    small_folder.main(run.args, run, data, model)
    assert type(model.encoder[1]) is CpuSyncBatchNorm
    torch.distributed.barrier()
    os._exit(0)  # nobody waits for the other's end


def test_runs_that_compute_blocks_again_are_equal_bit_for_bit(tmp_path):
    """In half precision and in parts; in two processes, with batch norms over both."""
    flags = {"amp": 1, "opt_level": "O2", "amp_dtype": "bf16", "device_batch_size": 1, "accumulate": 2}
    for wanted in (0, 1):
        args = arguments(tmp_path / f"one_{wanted}", checkpoint_activations=wanted, validate=0, **flags)
        carry_out(small_folder.main, with_dropout, args, small_folder)
        in_two_processes(tmp_path, as_one_of_two, tmp_path / f"two_{wanted}", {"checkpoint_activations": wanted})
    for processes in ("one", "two"):
        states = [last_checkpoint(tmp_path / f"{processes}_{wanted}") for wanted in (0, 1)]
        for state in states:
            del state["made_by"]["flags"]["checkpoint_activations"]
        assert_same_state(*states)
    assert "1 blocks are computed again" in (tmp_path / "two_1" / "train.log").read_text()


def test_it_is_refused_beside_a_network_that_is_compiled_or_recorded(tmp_path, monkeypatch):
    for flag in ("compile", "cuda_graph"):
        monkeypatch.setattr("common.step.amp.find_device_type", lambda _: "cuda")
        with pytest.raises(InputError, match=f"--checkpoint_activations and --{flag} cannot be combined"):
            Run(arguments(tmp_path / "run", checkpoint_activations=1, **{flag: 1}), small_folder)
