"""common/step/losses.py against sums over single pixels."""

import math
import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ci.tests.operators import Operators
from common.step.losses import cross_entropy, upsampled_cross_entropy


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


# ---- the loss of upsampled logits, image by image


def small_batch(dtype=torch.float64, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 3, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, 4, (3, 11, 19), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels


def graph_of_operators(logits: torch.Tensor, labels: torch.Tensor, over_all_pixels: bool = False) -> torch.Tensor:
    """The same loss with everything at full size at once."""
    large = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(large, labels, ignore_index=255, reduction="sum")
    return total / (labels.numel() if over_all_pixels else (labels != 255).sum())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("over_all_pixels", [False, True])
def test_image_by_image_is_the_loss_of_the_batch(over_all_pixels, layout):
    logits, labels = small_batch()
    logits = logits.detach().contiguous(memory_format=layout).requires_grad_()
    ours = upsampled_cross_entropy(logits, labels, over_all_pixels=over_all_pixels)
    theirs = graph_of_operators(logits, labels, over_all_pixels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-13)
    gradient, truth = (torch.autograd.grad(3.0 * loss, logits)[0] for loss in (ours, theirs))
    assert torch.allclose(gradient, truth, rtol=1e-11, atol=1e-15)


def test_small_logits_are_cast_and_turned_round_for_the_whole_batch_at_once():
    """In one pass each way: how many there are does not grow with the batch."""
    passes = []
    for images in (1, 3):
        logits, labels = (part.detach()[:images] for part in small_batch(torch.float16))
        logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
        with Operators() as operators:
            (gradient,) = torch.autograd.grad(upsampled_cross_entropy(logits, labels), logits)
        assert gradient.is_contiguous(memory_format=torch.channels_last)
        passes.append(operators.counts["aten::_to_copy"] + operators.counts["aten::clone"])
    assert passes[0] == passes[1] == 3  # there and back, and the labels that count as weights


def test_its_gradient_is_that_of_its_values():
    logits, labels = small_batch()
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, labels), logits)


@pytest.mark.parametrize("over_all_pixels", [False, True])
def test_upsampled_without_a_labelled_pixel_loss_and_gradient_are_zero(over_all_pixels):
    logits, labels = small_batch(torch.float32, ignored=1.1)
    loss = upsampled_cross_entropy(logits, labels, over_all_pixels=over_all_pixels)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_scale_reaches_16_bit_gradients_before_they_are_rounded(dtype):
    """Without that, gradients of this size would be 0 in float16."""
    logits, labels = small_batch(dtype)
    scale = 2.0**-10  # of a gradient whose pixels are a thousand times as many
    exact = logits.detach().double().requires_grad_()
    (graph_of_operators(exact, labels) * scale * 2.0**16).backward()
    (upsampled_cross_entropy(logits, labels) * scale * 2.0**16).backward()
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=2e-2, atol=1e-3 * exact.grad.abs().max())
    (upsampled_cross_entropy(logits, labels) * 2.0**-30).backward()
    assert logits.grad.dtype == dtype


def test_a_loss_without_gradients():
    logits, labels = small_batch()
    with torch.no_grad():
        loss = upsampled_cross_entropy(logits, labels)
    assert not loss.requires_grad and loss.item() == pytest.approx(graph_of_operators(logits, labels).item())


class LargestLive(TorchDispatchMode):
    """How many numbers the tensors that operators have made hold at most at the same time."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = weakref.WeakValueDictionary(), 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.alive[tensor.untyped_storage().data_ptr()] = tensor
        numbers = sum(tensor.untyped_storage().nbytes() for tensor in self.alive.values()) // 4
        self.most = max(self.most, numbers)
        return result


def test_one_image_at_a_time_is_at_full_size():
    """Of 8 images with 4 channels: two tensors of one of them, where the graph of operators has several of all."""
    logits = torch.randn(8, 4, 8, 8, requires_grad=True)
    labels = torch.randint(0, 4, (8, 64, 64))
    image = 4 * 64 * 64
    most = {}
    for name, loss in (("ours", upsampled_cross_entropy), ("plain", graph_of_operators)):
        with LargestLive() as live:
            loss(logits, labels).backward()
        most[name] = live.most / image
    # labels and their weights are int64 and float32 of the whole batch, and there may be two of each
    assert most["ours"] < 4 + 8 * (2 + 1 + 2 + 1) / 4
    assert most["plain"] > 3 * 8


def test_the_host_does_not_wait_for_a_loss():
    logits, labels = small_batch(torch.float32)
    with Operators() as operators:
        upsampled_cross_entropy(logits, labels).backward()
        cross_entropy(logits, labels[:, :3, :5]).backward()
    assert operators.unwanted == []
    assert "upsample_bilinear2d" in operators.names
