"""common/nets/pooling.py against torch's own mean over images."""

import pytest
import torch
from torch.nn import functional as F

from ci.tests.operators import Operators
from common.nets.pooling import image_mean


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_and_gradients_are_those_of_torch_bit_for_bit(dtype, layout):
    ours = torch.randn(2, 6, 5, 7).to(dtype).contiguous(memory_format=layout).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    means = image_mean(ours), F.adaptive_avg_pool2d(theirs, 1)
    assert torch.equal(*means) and means[0].shape == (2, 6, 1, 1)
    after = torch.randn(2, 6, 5, 7).to(dtype).contiguous(memory_format=layout)
    gradients = [
        torch.autograd.grad(features * mean.exp(), features, after)[0]
        for features, mean in zip((ours, theirs), means, strict=True)
    ]
    assert torch.equal(*gradients)
    assert gradients[0].is_contiguous(memory_format=layout)


def test_its_gradient_is_that_of_its_values():
    assert torch.autograd.gradcheck(image_mean, torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True))


def test_on_the_way_back_nothing_of_the_size_of_the_features_is_written():
    features = torch.randn(2, 6, 5, 7, requires_grad=True)
    mean = image_mean(features)
    with Operators() as operators:
        (gradient,) = torch.autograd.grad(mean, features, torch.ones_like(mean))
    assert gradient.shape == features.shape and 0 < max(operators.written.values()) <= mean.numel()
