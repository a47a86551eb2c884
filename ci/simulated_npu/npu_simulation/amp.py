"""torch.npu.amp: the plugin's own gradient scaler."""

import functools

import torch

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
        super().unscale_(optimizer)
        found = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        for flag in found.values():
            if not self._dynamic:
                flag.zero_()
            elif rules.State.overflow:
                flag.fill_(1.0)
            if flag.item():
                print("Gradient overflow. Skipping step")

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
