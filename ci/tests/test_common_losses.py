"""common/losses.py against sums over single pixels."""

import math

import pytest
import torch

from common.losses import cross_entropy, upsampled_cross_entropy


def pixel_losses(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """-log softmax of the true class of every labelled pixel, one at a time."""
    losses = []
    for image, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for y, row in enumerate(label):
            for x, truth in enumerate(row):
                if truth != 255:
                    values = [channel[y][x] for channel in image]
                    losses.append(math.log(sum(map(math.exp, values))) - values[truth])
    return losses


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64), labels


def test_mean_over_labelled_pixels_or_over_all(batch):
    logits, labels = batch
    losses = pixel_losses(logits, labels)
    assert 0 < len(losses) < labels.numel()
    assert cross_entropy(logits, labels).item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    over_all = cross_entropy(logits, labels, over_all_pixels=True).item()
    assert over_all == pytest.approx(sum(losses) / labels.numel(), rel=1e-12)


@pytest.mark.parametrize("over_all_pixels", [False, True])
def test_without_a_labelled_pixel_loss_and_gradient_are_zero(over_all_pixels):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 2, 2), 255), over_all_pixels=over_all_pixels)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_logits_are_brought_to_the_labels_with_corners_not_aligned():
    """2 to 4 pixels: the outer two repeat the ends, the inner two lie at a quarter and three quarters between them."""
    logits = torch.tensor([[[[0.0, 8.0]], [[0.0, 0.0]]]])  # [1, 2, 1, 2]
    labels = torch.tensor([[[0, 1, 0, 255]]])
    expected = [math.log(2), math.log(1 + math.exp(2)), math.log(1 + math.exp(-6))]
    assert upsampled_cross_entropy(logits, labels).item() == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert upsampled_cross_entropy(logits, labels, over_all_pixels=True).item() == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_16_bit_logits_is_float32(dtype):
    logits = torch.randn(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == dtype
