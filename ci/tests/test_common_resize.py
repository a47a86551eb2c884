"""`resize` against F.interpolate, with the gradient of each kind of device."""

import pytest
import torch
from torch.nn import functional as F

from ci.tests.folders import FOLDERS, module
from common.nets import resize as resizing
from common.nets.resize import resize
from common.step.criteria import Criterion
from common.step.losses import upsampled_cross_entropy

SIZES = [((1, 1), (4, 6)), ((5, 7), (10, 14)), ((5, 7), (9, 13)), ((8, 6), (8, 6)), ((60, 60), (120, 97)),
         ((7, 9), (3, 2)), ((6, 11), (48, 5)), ((2, 3), (1, 1))]  # fmt: skip


@pytest.fixture
def products(monkeypatch):
    """The gradient is found here as it is on CUDA."""
    monkeypatch.setattr(resizing, "GRADIENT", {"cpu": "products"})


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda tensor: torch.stack([tensor, tensor], dim=4)[..., 0],
    "turned": lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_values_and_gradients_are_those_of_torch(small, large, align_corners, layout, products):
    lay_out = LAYOUTS[layout]
    ours = lay_out(torch.randn(2, 3, *small, dtype=torch.float64)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    result = resize(ours, large, align_corners)
    expected = F.interpolate(theirs, size=large, mode="bilinear", align_corners=align_corners)
    assert torch.equal(result, expected)
    after = lay_out(torch.randn(expected.shape, dtype=torch.float64))
    (gradient,), (truth,) = (torch.autograd.grad(*pair, after) for pair in ((result, ours), (expected, theirs)))
    torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-12)
    (again,) = torch.autograd.grad(resize(ours, large, align_corners), ours, after)
    assert torch.equal(again, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layout_and_type_are_kept_in_any_autocast(dtype, products):
    features = torch.randn(2, 8, 5, 6).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = features.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        large = resize(features, (20, 24))
        large.float().square().sum().backward()
    F.interpolate(exact, size=(20, 24), mode="bilinear").square().sum().backward()
    assert large.dtype == features.grad.dtype == dtype
    assert large.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    error = (features.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error < tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_channels_of_16_bits_are_products_on_the_way_there_too(dtype, products, monkeypatch):
    features = torch.randn(2, resizing.MANY_CHANNELS, 5, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(features.double(), size=(10, 13), mode="bilinear", align_corners=True)
    monkeypatch.setattr(resizing, "VALUES", {"cpu": "products"})

    def no_kernel(*_):
        raise AssertionError("torch's kernel")

    monkeypatch.setattr(resizing, "_interpolate", no_kernel)
    large = resize(features.requires_grad_(), (10, 13), align_corners=True)
    assert large.dtype == dtype and large.is_contiguous(memory_format=torch.channels_last)
    error = (large.double() - expected).abs().max() / expected.abs().max()
    assert error < {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    with pytest.raises(AssertionError, match="torch's kernel"):  # logits are exact
        resize(torch.zeros(1, 5, 6, 64).permute(0, 3, 1, 2).requires_grad_(), (10, 13))


@pytest.mark.parametrize(("size", "first"), [((4, 64), "rows"), ((64, 4), "columns")])
def test_products_in_the_order_of_fewer_multiplications(size, first, products, monkeypatch):
    order = []
    for name in ("rows", "columns"):
        product = getattr(resizing, f"_of_{name}")
        monkeypatch.setattr(resizing, f"_of_{name}", lambda *args, p=product, n=name: (order.append(n), p(*args))[1])
    small = torch.zeros(1, 2, size[0] // 2, size[1] // 2, requires_grad=True)
    resize(small, size).sum().backward()
    assert order == [first, "columns" if first == "rows" else "rows"]


def test_a_compiler_takes_it_whole(products):
    torch.library.opcheck(resizing._resized, (torch.rand(2, 3, 4, 5, requires_grad=True), 8, 7, True))
    gradient = torch.rand(2, 3, 8, 7).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(resizing._resized_backward, (gradient, 4, 5, True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_of_half_precision_lose_nothing_in_the_loss(dtype, products):
    """Logits of size 50: in 16 bits their interpolation would be off by hundredths."""
    logits = (50 * torch.randn(1, 19, 8, 8)).to(dtype).requires_grad_()
    labels = torch.randint(19, (1, 32, 32))
    exact = logits.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = upsampled_cross_entropy(logits, labels)
    loss.backward()
    expected = F.cross_entropy(F.interpolate(exact, size=(32, 32), mode="bilinear"), labels)
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = exact.grad.abs().max()
    assert (logits.grad.double() - exact.grad).abs().max() / scale < {torch.float16: 2e-3, torch.bfloat16: 8e-3}[dtype]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_training_step_scatters_as_planned_for_cuda(folder, products):
    model_module, tiny = module(folder, "model"), module(folder, "presets").PRESETS["tiny"]
    options = {"backbone": tiny["backbone"]} if "backbone" in tiny else {}
    model = model_module.build_model(**options).train()
    images, target = torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    # of a profile, as it also has what runs inside of other operators
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outputs = model(images)
        losses = [model_module.training_loss(outputs, target, criterion=each) for each in (None, Criterion({"ce": 1}))]
        sum(term for terms in losses for term in terms.values()).backward()
    ran = {event.name for event in profile.events()}
    assert "aten::convolution_backward" in ran
    assert not {name for name in ran if name.startswith("aten::upsample_bilinear2d_backward")}


def test_on_cuda_no_gradient_is_scattered():
    assert resizing.GRADIENT["cuda"] == "products"
