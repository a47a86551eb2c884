"""The simulated NPU itself: as exact as the CPU, as picky as the hardware, and a good observer."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


class Network(nn.Module):
    """Every kind of layer that a segmentation network has."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.PReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.ReLU(inplace=True), nn.Dropout(0.2),
            nn.ConvTranspose2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images):
        x = self.features(images)
        pooled = F.interpolate(F.adaptive_avg_pool2d(x, (2, 3)), size=x.shape[-2:], mode="nearest")
        logits = self.head(torch.cat([x, pooled], dim=1))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)


def losses_of_training(device: str, optimizer_of) -> list[float]:
    torch.manual_seed(0)
    model = Network().to(device)
    optimizer = optimizer_of(model.parameters())
    images, target = torch.randn(4, 3, 24, 32).to(device), torch.randint(0, 4, (4, 24, 32))
    target[0] = 255
    target, losses = target.to(device), []
    for _ in range(5):
        loss = F.cross_entropy(model(images), target, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    ],
)
def test_training_is_bit_for_bit_that_of_the_cpu(npu, optimizer_of):
    on_npu, on_cpu = losses_of_training("npu", optimizer_of), losses_of_training("cpu", optimizer_of)
    assert on_npu == on_cpu
    assert on_npu[-1] < on_npu[0]


def test_views_share_memory_and_gradients_flow_through_them(npu):
    x = torch.zeros(4, 6, device="npu")
    x[1:3, ::2].add_(1)
    assert x.cpu().sum() == 6
    leaf = torch.ones(2, 3, device="npu", requires_grad=True)
    (leaf.t().reshape(-1)[2:].view(2, 2) * 3).sum().backward()
    assert leaf.grad.cpu().tolist() == [[0, 3, 3], [0, 3, 3]]


def test_state_dicts_travel_between_devices(npu, tmp_path):
    model = Network().npu()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for device in ("cpu", "npu"):
        state = torch.load(tmp_path / "weights.pt", map_location=device, weights_only=True)
        assert {value.device.type for value in state.values()} == {device}
        for name, value in model.state_dict().items():
            assert torch.equal(state[name].cpu(), value.cpu()), name


# ---- as picky as the hardware


def image(dtype=torch.float32) -> torch.Tensor:
    return torch.ones(1, 3, 8, 8, dtype=dtype, device="npu")


REFUSED = {
    "channels_last": (lambda: image().to(memory_format=torch.channels_last), "Only contiguous_format"),
    "module channels_last": (lambda: Network().npu().to(memory_format=torch.channels_last), "Only contiguous_format"),
    "scale_factor": (lambda: F.interpolate(image(), scale_factor=2.0), "needs size="),
    "bilinear scale_factor": (lambda: F.interpolate(image(), scale_factor=2.0, mode="bilinear"), "needs size="),
    "float64": (lambda: image().double(), "float64"),
    "float64 from the CPU": (lambda: torch.zeros(3, dtype=torch.float64).npu(), "float64"),
    "float64 result": (lambda: image().sum(dtype=torch.float64), "float64"),
    "no kernel": (lambda: F.huber_loss(image(), image()), "huber_loss.*fall back to run on the CPU"),
    "two devices": (lambda: image() + torch.ones(8), "same device"),
    "weights left on the CPU": (lambda: nn.Conv2d(3, 4, 1)(image()), "same device"),
    "boolean index": (lambda: image()[image() > 0], "boolean index"),
    "boolean index to write": (lambda: image().__setitem__(image() > 0, image().flatten()), "boolean index"),
    "dilated pooling": (lambda: F.max_pool2d(image(), 2, dilation=2), "dilation"),
    "device in numpy": (lambda: image().numpy(), "npu"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_hardware_does_not_do_is_an_error(npu, call, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        call()


def test_labels_beyond_the_classes_give_a_wrong_number_and_no_error(npu):
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, 0, 0] = 255
    right = F.cross_entropy(logits, labels, ignore_index=255)
    assert torch.equal(F.cross_entropy(logits.npu(), labels.npu(), ignore_index=255).cpu(), right)
    labels[1, 1, 1] = 7
    assert abs(F.cross_entropy(logits.npu(), labels.npu(), ignore_index=255).item() - right.item()) > 10


def test_a_chip_of_the_first_generation_saturates(npu, monkeypatch):
    from npu_simulation import rules

    too_large = torch.full((3,), 60000.0, dtype=torch.float16, device="npu")
    assert torch.isinf((too_large * 2).cpu()).all()
    monkeypatch.setattr(rules, "INF_NAN", False)
    npu.clear_npu_overflow_flag()
    assert (too_large / 2).cpu().tolist() == [30000.0] * 3
    assert not npu.get_npu_overflow_flag()
    assert (too_large * 2).cpu().tolist() == [65504.0] * 3
    assert npu.get_npu_overflow_flag()
    monkeypatch.setattr(rules, "BFLOAT16", False)
    with pytest.raises(RuntimeError, match="bfloat16"):
        image().bfloat16()


def test_a_forked_process_cannot_use_the_device(npu):
    image()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            image()
            os.write(write, b"it can")
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"Cannot re-initialize NPU in forked subprocess" in os.read(read, 1000)


def test_settings_are_those_of_the_plugin(npu):
    assert npu.conv.allow_hf32 and not npu.matmul.allow_hf32
    npu.config.allow_internal_format = False
    with pytest.raises(AttributeError):
        _ = npu.config.allow_internal_format
    npu.set_compile_mode(jit_compile=False)
    assert npu.is_jit_compile_false()
    with pytest.raises(ImportError):
        __import__("torch_npu.contrib.transfer_to_npu")


# ---- mixed precision


def test_autocast_has_the_lists_of_the_plugin(npu):
    x, norm = image(), nn.BatchNorm2d(4).npu()
    convolution = nn.Conv2d(3, 4, 1).npu()
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("npu", dtype=dtype):
            y = convolution(x)
            assert y.dtype == dtype
            assert norm(y).dtype == torch.sigmoid(y).dtype == F.adaptive_avg_pool2d(y, 2).dtype == dtype
            assert F.interpolate(y, size=(4, 4), mode="bilinear").dtype == dtype  # CUDA: float32
            assert F.softmax(y, 1).dtype == F.log_softmax(y, 1).dtype == y.sum().dtype == torch.float32
            assert F.cross_entropy(y, torch.zeros(1, 8, 8, dtype=torch.int64, device="npu")).dtype == torch.float32
            assert torch.cat([y, y.float()]).dtype == torch.float32
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                F.binary_cross_entropy(torch.sigmoid(y), torch.zeros_like(y))
        y.float().sum().backward()
        assert convolution.weight.grad.dtype == torch.float32
    assert convolution(x).dtype == torch.float32


def test_the_scaler_of_the_plugin(npu):
    parameter = nn.Parameter(torch.ones(1, device="npu"))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = npu.amp.GradScaler(1024.0, 2.0, 0.5, 1)
    for factor, value, scale in ((1.0, 0.0, 2048.0), (float("inf"), 0.0, 1024.0), (2.0, -2.0, 2048.0)):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (parameter.item(), scaler.get_scale()) == (value, scale)
    state = scaler.state_dict()
    del state["dynamic"]
    with pytest.raises(KeyError, match="dynamic"):
        npu.amp.GradScaler().load_state_dict(state)


def test_the_fused_optimizers_of_the_plugin(npu):
    import torch_npu

    def fused(parameters):
        return torch_npu.optim.NpuFusedSGD(parameters, lr=0.1, momentum=0.9)

    plain = losses_of_training("npu", lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    assert losses_of_training("npu", fused) == plain
    with pytest.raises(ValueError, match="set_to_none"):
        fused(Network().npu().parameters()).zero_grad(set_to_none=True)
    narrow = torch.zeros(3, dtype=torch.bfloat16, device="npu", requires_grad=True)
    narrow.grad = torch.zeros_like(narrow)
    with pytest.raises(TypeError, match="bfloat16"):
        fused([narrow]).step()


# ---- what it counts


def test_what_makes_the_host_wait_is_counted_with_its_place(npu, counters):
    x = image()
    assert counters.waits == {}
    x.sum().item()
    x.cpu()
    bool((x > 0).all())
    npu.synchronize()
    torch.bincount(torch.zeros(3, dtype=torch.int64, device="npu"))
    torch.zeros(5).npu(non_blocking=True)
    torch.zeros(5).pin_memory().npu()
    assert counters.waits == {
        "item": 2, "copy to the host": 1, "synchronize": 1, "bincount": 1, "copy to the device": 2,
    }  # fmt: skip
    assert {place.rpartition(":")[0] for _, place in counters.places} == {__file__}


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_of_pinned_batches_wait_for_nothing(npu, counters, workers):
    batches = DataLoader(torch.arange(8.0), batch_size=4, pin_memory=True, num_workers=workers)
    received = [batch.npu(non_blocking=True) for batch in batches]
    assert counters.waits == {}
    assert torch.cat(received).cpu().tolist() == list(range(8))


def test_shapes_of_convolutions_are_counted_by_layer(npu, counters):
    first, second = nn.Conv2d(3, 4, 1).npu(), nn.Conv2d(4, 3, 1).npu()
    for size in (8, 8, 6):
        second(first(torch.ones(1, 3, size, 8, device="npu")))
    assert sorted(counters.convolutions.values(), key=len) == [
        {(1, 3, 8, 8), (1, 3, 6, 8)},
        {(1, 4, 8, 8), (1, 4, 6, 8)},
    ]
    assert len(counters.convolution_kinds) == 4
    assert not counters.strided.total()
    first(torch.ones(1, 8, 8, 3, device="npu").permute(0, 3, 1, 2))
    assert counters.strided == {"input": 1, "weight": 0}


def test_memory_in_use_is_counted(npu):
    before = npu.memory_allocated()
    npu.reset_peak_memory_stats()
    x = torch.zeros(1000, device="npu")
    y = x[:10] + 1
    assert npu.memory_allocated() - before == 4040
    del x, y
    assert npu.memory_allocated() == before
    assert npu.max_memory_allocated() - before == 4040


# ---- streams


def test_memory_of_another_stream_needs_a_wait(npu):
    beside = npu.Stream()
    with npu.stream(beside):
        x = torch.zeros(8, device="npu") + 1
    with pytest.raises(RuntimeError, match="has to wait"):
        x + 1
    npu.current_stream().wait_stream(beside)
    assert (x + 1).cpu().tolist() == [2.0] * 8
    x + 1
    with npu.stream(beside), pytest.raises(RuntimeError, match="has to wait"):
        x.zero_()  # the default stream may be reading it
    beside.wait_stream(npu.current_stream())
    with npu.stream(beside):
        x.zero_()
        event = beside.record_event()
    npu.current_stream().wait_event(event)
    x + 1


@pytest.mark.parametrize("recorded", [True, False])
def test_memory_that_another_stream_uses_is_not_to_be_given_back(npu, recorded):
    beside = npu.Stream()
    with npu.stream(beside):
        x = torch.zeros(8, device="npu") + 1
    npu.current_stream().wait_stream(beside)
    x + 1
    if recorded:
        x.record_stream(npu.current_stream())
    del x
    with npu.stream(beside):
        if recorded:
            torch.zeros(8, device="npu")
        else:
            with pytest.raises(RuntimeError, match="record_stream"):
                torch.zeros(8, device="npu")


def test_events_measure_time_if_asked_to(npu):
    start, end = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
    start.record()
    end.record()
    assert start.elapsed_time(end) >= 0
    with pytest.raises(RuntimeError, match="enable_timing"):
        start.elapsed_time(npu.Event())


@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("steps", [None, 1, 2])
def test_the_profiler_of_the_plugin(npu, tmp_path, monkeypatch, capsys, steps, starts):
    """It warns without a schedule whose steps are made, and of its own defaults; and it raises no error."""
    import torch_npu
    from npu_simulation import profiler

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiler, "STARTS", starts)
    activities = torch_npu.profiler.ProfilerActivity
    given = {"activities": [activities.CPU, activities.NPU]}
    if steps:
        given["schedule"] = torch_npu.profiler.schedule(wait=0, warmup=0, active=2, repeat=1)
        given["experimental_config"] = torch_npu.profiler._ExperimentalConfig(
            aic_metrics=torch_npu.profiler.AiCMetrics.AiCoreNone
        )
    with torch_npu.profiler.profile(**given) as profile:
        for _ in range(steps or 2):
            image() + 1
            profile.step()
    profile.export_chrome_trace("trace.json")
    assert Path("trace.json").is_file() is starts
    assert [*Path("export_only_prof_dir").iterdir()], "it does not clean up either"
    output = capsys.readouterr().out
    assert ("Call start failed. Exception: libmsprofiler.so" in output) is not starts
    assert ("Incorrect schedule" in output) is (starts and steps != 2)
    assert ("reset aic metrics to None" in output) is (steps is None)
    assert not hasattr(profile, "key_averages")
    with pytest.raises(TypeError):
        torch_npu.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
