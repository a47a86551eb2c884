"""torch_npu.optim: stand-ins with the limits of the plugin's fused optimizers and the arithmetic of torch's."""

import torch

_DTYPES = (torch.float32, torch.float16)


class _Fused:
    """What the fused optimizers demand of their parameters and do not offer.

    In the first step or `zero_grad` all parameters and all gradients move into one tensor each, and stay there: a
    gradient that is replaced afterwards would be ignored by the plugin, and is an error here.
    """

    is_fused_optimizer = True

    def __init__(self, params, *args, **kwargs):
        super().__init__(params, *args, foreach=False, **kwargs)
        self._combined: list[tuple[torch.nn.Parameter, int]] = []  # parameter, address of its gradient

    def _combine(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in parameters:
            if p.device.type != "npu" or p.dtype not in _DTYPES or not p.is_contiguous():
                raise TypeError(
                    f"a fused optimizer takes contiguous float32 or float16 parameters on the NPU, not {p.dtype} on "
                    f"{p.device}"
                )
            if p.grad.untyped_storage().nbytes() != p.grad.numel() * p.grad.element_size():
                raise RuntimeError("a fused optimizer takes gradients that are no views of a larger tensor")
        for dtype in _DTYPES:
            of_dtype = [p for p in parameters if p.dtype == dtype]
            for tensors in ([p.data for p in of_dtype], [p.grad for p in of_dtype]):
                if tensors:
                    parts = torch.cat([tensor.reshape(-1) for tensor in tensors]).split([t.numel() for t in tensors])
                    for tensor, part in zip(tensors, parts, strict=True):
                        tensor.set_(part.view(tensor.shape))
        self._combined = [(p, p.grad.data_ptr()) for p in parameters]

    @torch.no_grad()
    def _check(self) -> None:
        if not self._combined:
            self._combine()
        for p, address in self._combined:
            if p.grad is None or p.grad.data_ptr() != address:
                raise RuntimeError("a gradient is no longer the one that the fused optimizer keeps")

    def step(self, closure=None):
        self._check()
        for state in (state for state in self.state.values() if "step" in state):
            # the plugin counts in numbers: a tensor it would increase twice
            if isinstance(state["step"], torch.Tensor):
                raise RuntimeError("a fused optimizer was given its count of steps as a tensor")
            state["step"] = torch.tensor(float(state["step"]))
        result = super().step(closure)
        for state in self.state.values():
            if "step" in state:
                state["step"] = int(state["step"])
        return result

    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        self._check()
        super().zero_grad(set_to_none=False)


class NpuFusedSGD(_Fused, torch.optim.SGD):
    """torch_npu.optim.NpuFusedSGD."""


class NpuFusedAdam(_Fused, torch.optim.Adam):
    """torch_npu.optim.NpuFusedAdam."""


class NpuFusedAdamW(_Fused, torch.optim.AdamW):
    """torch_npu.optim.NpuFusedAdamW."""
