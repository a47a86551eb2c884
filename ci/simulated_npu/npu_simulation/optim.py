"""torch_npu.optim: stand-ins with the limits of the plugin's fused optimizers and the arithmetic of torch's."""

import torch

_DTYPES = (torch.float32, torch.float16)


class _Fused:
    """What the fused optimizers demand of their parameters and do not offer."""

    is_npu_fused_optimizer = True

    def __init__(self, params, *args, **kwargs):
        super().__init__(params, *args, **kwargs)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.device.type != "npu" or parameter.dtype not in _DTYPES or not parameter.is_contiguous():
                    raise TypeError(
                        f"a fused optimizer takes contiguous float32 or float16 parameters on the NPU, not "
                        f"{parameter.dtype} on {parameter.device}"
                    )

    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        super().zero_grad(set_to_none=False)


class NpuFusedSGD(_Fused, torch.optim.SGD):
    """torch_npu.optim.NpuFusedSGD."""


class NpuFusedAdam(_Fused, torch.optim.Adam):
    """torch_npu.optim.NpuFusedAdam."""


class NpuFusedAdamW(_Fused, torch.optim.AdamW):
    """torch_npu.optim.NpuFusedAdamW."""
