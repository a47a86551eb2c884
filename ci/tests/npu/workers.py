"""What one of two processes does: tests start it in processes of their own."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch

from ci.tests.folders import FOLDERS, carry_out
from ci.tests.narrow import narrow_networks
from common.device.world import World
from common.step.amp import Amp


def sync_batch_norm_step(device: str, share: slice) -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics of torch's SyncBatchNorm, from a share of five images."""
    torch.manual_seed(1)
    images, weights = torch.randn(5, 3, 6, 7), torch.randn(5, 3, 6, 7)
    norm = torch.nn.BatchNorm2d(3)
    norm.weight.data.uniform_(0.5, 2)
    if device == "npu":
        norm = torch.nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    norm.to(device)
    x = images[share].to(device).requires_grad_()
    y = norm(x)
    (y * weights[share].to(device)).sum().backward()
    result = {"y": y, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, "variance": norm.running_var}
    return {name: value.detach().cpu() for name, value in result.items()}


def main(device: str, folder: str, runs: str) -> None:
    """Train every model as `runs` says, [[model, output folder, [flag, ...]], ...] in JSON; then a few collectives."""
    import torch.distributed as dist

    for model, words in json.loads(runs):
        assert model in FOLDERS
        with contextlib.redirect_stdout(io.StringIO()), narrow_networks():
            carry_out(model, *words, processes=2)
    rank = dist.get_rank()
    seen = {"world": (rank, dist.get_world_size()), "backend": dist.get_backend()}
    if device == "npu":
        seen |= collectives(rank)
        seen["overflow"] = overflow_on_one_process(rank)
        seen["sync_batch_norm"] = sync_batch_norm_step("npu", slice(0, 2) if rank == 0 else slice(2, 5))
    torch.save(seen, Path(folder) / f"seen_by_{rank}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # as `launch` ends a process of gloo


def overflow_on_one_process(rank: int) -> dict:
    """Three steps on a chip that saturates; in the second, the numbers of process 1 alone are too large.

    Gradients are not exchanged, so that nothing but the scaler can tell process 0 of it.
    """
    from npu_simulation import rules

    rules.INF_NAN = False
    model = torch.nn.Linear(2, 1, bias=False).npu()
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, fused=False)
    amp = Amp(model, optimizer, "O1", "128", World(torch.device("npu", rank), rank, 2))
    weights, skipped = [], []
    for step in range(3):
        factor = 1e38 if (step, rank) == (1, 1) else 1.0
        amp.step(model(torch.ones(1, 2, device="npu")).sum() * factor * 4)
        weights.append(model.weight.tolist())
        skipped.append(amp.skipped_steps.item())
    rules.INF_NAN = True
    return {"weights": weights, "skipped": skipped}


def collectives(rank: int) -> dict:
    """What HCCL gives and what it refuses."""
    import torch.distributed as dist

    counts = torch.tensor([rank + 1, 10], device="npu")
    dist.all_reduce(counts)
    gathered = [torch.zeros(2, device="npu") for _ in range(2)]
    dist.all_gather(gathered, torch.full((2,), float(rank), device="npu"))
    objects = [None, None]
    dist.all_gather_object(objects, {"rank": rank})
    refused = {}
    for name, call in {
        "float64 sum": lambda: dist.all_reduce(torch.empty(2, dtype=torch.float64)),
        "int64 gather": lambda: dist.all_gather([counts.clone(), counts.clone()], counts),
        "strided": lambda: dist.all_reduce(torch.zeros(4, 3, device="npu").t()),
        "cpu": lambda: dist.all_reduce(torch.zeros(3)),
    }.items():
        try:
            call()
            refused[name] = ""
        except RuntimeError as error:
            refused[name] = str(error)
    return {
        "sum": counts.tolist(),
        "gathered": torch.stack(gathered).tolist(),
        "objects": objects,
        "refused": refused,
        "device": torch.npu.current_device(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
