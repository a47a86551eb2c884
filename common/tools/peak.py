"""What a network asks of a device, and what a device could give: operations of a training step, peak rates.

Operations are counted as in `common.tools.complexity`: two for each multiplication with addition, in convolutions and
matrix products alone.
"""

import re

import torch

from common.tools.complexity import operations

# Device name -> precision -> peak rate in TFLOP/s without sparsity, as the manufacturer states it; fp16 and bf16 with
# sums in float32. Sources: NVIDIA's data sheets of the A100 (2021), H100 (2023), H200 (2024), L40S (2023) and V100
# (2020) Tensor Core GPUs, which state rates with sparsity for all but the last and the A100: halved here; its white
# papers "Ada GPU Architecture" (2022) and "Ampere GA102 GPU Architecture" (2021) for the GeForce cards. Of Ascend NPUs
# no such document is known that tells the variants apart.
PEAK_TFLOPS = {
    r"NVIDIA A100(?!.* MIG ).*": {"fp32": 19.5, "tf32": 156, "fp16": 312, "bf16": 312},
    r"NVIDIA H100 PCIe": {"fp32": 51, "tf32": 378, "fp16": 756.5, "bf16": 756.5},
    r"NVIDIA H100 NVL": {"fp32": 60, "tf32": 417.5, "fp16": 835.5, "bf16": 835.5},
    r"NVIDIA H100 80GB HBM3": {"fp32": 67, "tf32": 494.5, "fp16": 989.5, "bf16": 989.5},
    r"NVIDIA H200": {"fp32": 67, "tf32": 494.5, "fp16": 989.5, "bf16": 989.5},
    r"NVIDIA H200 NVL": {"fp32": 60, "tf32": 417.5, "fp16": 835.5, "bf16": 835.5},
    r"NVIDIA L40S": {"fp32": 91.6, "tf32": 183, "fp16": 362.05, "bf16": 362.05},
    r"NVIDIA GeForce RTX 4090": {"fp32": 82.6, "tf32": 82.6, "fp16": 165.2, "bf16": 165.2},
    r"NVIDIA GeForce RTX 3090": {"fp32": 35.6, "tf32": 35.6, "fp16": 71, "bf16": 71},
    r"Tesla V100-SXM.*": {"fp32": 15.7, "fp16": 125},
    r"Tesla V100-PCIE.*": {"fp32": 14, "fp16": 112},
}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Peak TFLOP/s of a device in 'fp32', 'tf32', 'fp16' or 'bf16'; None for a device that is not in the table."""
    for pattern, rates in PEAK_TFLOPS.items():
        if re.fullmatch(pattern, device_name):
            return rates.get(precision)
    return None


def training_operations(build_model, options: dict, size: tuple[int, int]) -> int:
    """Operations of a training step for one image of `size` (height, width): forward with auxiliary heads, backward."""
    with torch.device("meta"):
        return operations(build_model(**options), size, training=True)
