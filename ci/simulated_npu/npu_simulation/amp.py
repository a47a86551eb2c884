"""torch.npu.amp: the plugin's own gradient scaler."""

import functools

import torch
import torch.distributed as dist

from npu_simulation import rules


class GradScaler(torch.amp.GradScaler):
    """The scaler of torch_npu: `dynamic` comes before `enabled`, and overflow is also what the hardware's flag says."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ):
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def scale(self, outputs):
        rules.State.overflow = False
        return super().scale(outputs)

    def unscale_(self, optimizer) -> None:
        raised = rules.State.overflow
        super().unscale_(optimizer)
        found = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        overflow = self._dynamic and (raised or any(flag.item() for flag in found.values()))
        if self._dynamic and not rules.INF_NAN and dist.is_initialized():
            count = torch.full((1,), float(overflow), device="npu")
            dist.all_reduce(count)
            overflow = count.item() > 0
        for flag in found.values():
            flag.fill_(float(overflow))
        if overflow:
            print("Gradient overflow. Skipping step")

    def step(self, optimizer, *args, **kwargs):
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # it hands torch's fused ones an unknown argument
            raise TypeError("step() got an unexpected keyword argument 'grad_scaler'")
        return super().step(optimizer, *args, **kwargs)

    def update(self, new_scale=None) -> None:
        if self._dynamic or new_scale is not None:
            super().update(new_scale)
        else:
            self._per_optimizer_states.clear()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "dynamic": self._dynamic} if self._enabled else {}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._dynamic = state["dynamic"]


autocast = functools.partial(torch.amp.autocast, "npu")
custom_fwd = functools.partial(torch.amp.custom_fwd, device_type="npu")
custom_bwd = functools.partial(torch.amp.custom_bwd, device_type="npu")
