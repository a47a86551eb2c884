"""common/device/determinism.py: the operators that --deterministic could not make repeatable are named once each."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from ci.tests import small_folder
from ci.tests.small_folder import arguments, build
from common.device import determinism
from common.start import carry_out

PUT = "--deterministic: put_ has no repeatable form on this device"


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)
    determinism.collect(False)


class PutOnTheWayBack(torch.autograd.Function):
    """The identity, whose backward pass calls `put_`: for it, torch has no repeatable form on any device."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone().put_(torch.tensor([0]), gradient.flatten()[:1])


def main(args, run, data, model) -> dict:
    run.prepare(model)
    run.optimizer(model.parameters())
    for _, images, target in run.steps(data.train):
        target = target.clone().put_(torch.tensor([0]), target.flatten()[:1])  # in another place than on the way back
        losses = small_folder.training_loss(run.network(images), target)
        run.step({name: PutOnTheWayBack.apply(loss) for name, loss in losses.items()})
    warnings.warn("of something else", stacklevel=1)
    return run.finish()


def trained(output_dir: Path, **flags) -> tuple[str, dict]:
    """(train.log, result.json) of a run."""
    carry_out(main, build, arguments(output_dir, max_steps=3, **flags), small_folder)
    return (output_dir / "train.log").read_text(), json.loads((output_dir / "result.json").read_text())


@pytest.mark.parametrize("run", ["first", "again"])  # in the same process
def test_an_operator_without_a_repeatable_form_is_a_line_and_in_the_result(tmp_path, run):
    with pytest.warns(UserWarning) as shown:
        said, result = trained(tmp_path / "run", deterministic=1)
    assert said.count(PUT) == said.count("--deterministic") == 1 and result["not_deterministic"] == ["put_"]
    assert [str(warning.message) for warning in shown] == ["of something else"]


def test_nobody_is_told_who_has_not_asked(tmp_path):
    with pytest.warns(UserWarning, match="of something else"):
        said, result = trained(tmp_path / "run")
    assert PUT not in said and "not_deterministic" not in result


def test_products_that_torch_cannot_make_repeatable_have_a_name():
    """What torch says on CUDA where CUBLAS_WORKSPACE_CONFIG is of the user's making."""
    determinism.collect(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        determinism.collect(True)  # whatever the user does with warnings
        warnings.warn(
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
            "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses "
            "CuBLAS and you have CUDA >= 10.2.",
            stacklevel=1,
        )
    assert determinism.found() == {"not_deterministic": ["cuBLAS"]}
