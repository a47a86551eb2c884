"""Mixed precision behind one `step`: opt levels O0, O1 and O2 on every device, without apex."""

import os
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.device import npu
from common.device.watching import mark
from common.device.world import (
    World,
    check_layout,
    chosen_devices,
    device_name,
    find_device_type,
    has_bfloat16,
    saturates,
)
from common.errors import InputError
from common.step.averaging import MovingAverage

# Where a dynamic loss scale starts; it doubles after 2,000 good steps in a row and halves when gradients overflow.
# GradScaler starts at 2^16, from where one of the networks skips its first eight to eleven steps: a short trial would
# learn nothing.
# A scale that is too low costs the smallest gradients until it has doubled; the originals fix it at up to 2^10.
FIRST_SCALE = 2.0**10
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def effective_opt_level(amp: bool | None, opt_level: str, world: World, precision_mode: str | None = None) -> str:
    """The level a run works at. Without --amp or --no_amp: mixed precision on accelerators, float32 on the CPU.

    `--precision_mode must_keep_origin_dtype` turns it off, whatever --amp says, as the scripts of the originals do.
    """
    wanted = world.device.type != "cpu" if amp is None else amp
    return opt_level if wanted and precision_mode != "must_keep_origin_dtype" else "O0"


def check_device_options(args: Namespace) -> None:
    """Raise InputError for a layout or a precision that the device of the run does not support.

    For before any process starts: the first device of the run is asked, which on an NPU opens it. In a torchrun of the
    user's each process asks its own later (`Amp`).
    """
    device = torch.device(find_device_type(args.device), (chosen_devices(args) or [0])[0])
    world = World(device)
    check_layout(args.channels_last, device.type)
    if args.cuda_graph and device.type != "cuda":
        raise InputError(f"--cuda_graph: the device is {device.type}, and only CUDA has such graphs; leave it out")
    for flag in ("compile", "cuda_graph"):
        if args.checkpoint_activations and getattr(args, flag):
            raise InputError(f"--checkpoint_activations and --{flag} cannot be combined; leave one of them out")
    if "LOCAL_RANK" not in os.environ:
        opt_level = effective_opt_level(args.amp, args.opt_level, world, args.precision_mode)
        check_half_precision(opt_level, args.amp_dtype, world)


def check_half_precision(opt_level: str, dtype: str, world: World) -> None:
    """Raise InputError for bfloat16 on a chip without it."""
    if opt_level != "O0" and dtype == "bf16" and not has_bfloat16(world):
        raise InputError(
            f"--amp_dtype bf16: {device_name(world.device)} has no bfloat16; use --amp_dtype fp16, or --no_amp"
        )


def autocast(opt_level: str, dtype: str, world: World) -> AbstractContextManager:
    """The context for a forward pass at this level."""
    if opt_level == "O0":
        return nullcontext()
    return torch.autocast(world.device.type, dtype=DTYPES[dtype])


class Amp:
    """Autocast, loss scale and optimizer step of one model.

    opt_level (the names of NVIDIA apex, which the original recipes use):
        O0  float32.
        O1  autocast: each operator runs in the precision that suits it; weights stay float32.
        O2  weights are half precision except in normalisation layers, and the optimizer works on float32 master
            copies; operators run under autocast. Half the weight memory and no casts in each step. What the optimizer
            does not have, frozen weights, stays float32.
    loss_scale: "dynamic" or a number as text; "-1" means dynamic, as in the original command lines. Only fp16 needs
        a scale: with bf16 and O0 it is 1.

    At every level a step whose gradients are not finite changes neither weights nor momentum and is counted in
    `skipped_steps`, a tensor on the device: on CPU and CUDA nothing here waits for the device when the optimizer is a
    fused one. Chips that saturate instead of overflowing have the plugin's own scaler at every level, which reads the
    flag of the hardware and waits for it.
    clip_norm: the largest norm of the gradients of all weights together, without the loss scale; larger ones are scaled
    down to it (arXiv:1211.5063). 0: never.

    Construct it after the model is on the device and before the optimizer's first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        opt_level: str,
        loss_scale: str,
        world: World,
        dtype: str = "fp16",
        clip_norm: float = 0.0,
    ):
        self.model, self.optimizer, self.opt_level = model, optimizer, opt_level
        self.world, self.dtype, self.clip_norm = world, dtype, clip_norm
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=world.device)
        check_half_precision(opt_level, dtype, world)
        scaled = opt_level != "O0" and dtype == "fp16"
        dynamic = scaled and loss_scale in ("dynamic", "-1")
        self.static_scale = None if dynamic else (float(loss_scale) if scaled else 1.0)
        init_scale = self.static_scale or FIRST_SCALE
        own = saturates(world)
        self.scaler = npu.grad_scaler(init_scale) if own else torch.amp.GradScaler(world.device.type, init_scale)
        # (half-precision parameter of the model, its float32 master that the optimizer updates)
        self.masters: list[tuple[nn.Parameter, nn.Parameter]] = self._make_masters() if opt_level == "O2" else []
        self._start_momentum()
        self.average: MovingAverage | None = None

    @classmethod
    def of(cls, args: Namespace, model: nn.Module, optimizer: Optimizer, opt_level: str, world: World) -> "Amp":
        """With the scale, the type and the clipping of the command line."""
        return cls(model, optimizer, opt_level, args.loss_scale, world, args.amp_dtype, args.clip_norm)

    def follow_weights(self, decay: float) -> list[str]:
        """Keep an average of the weights (`common.step.averaging`) from now on; returns the lines about it. 0: none."""
        if not decay:
            return []
        self.average = MovingAverage(self.model, self.masters, decay)
        return [f"--ema {decay}: evaluations score an average of the weights, which is what best.pt holds"]

    def autocast(self) -> AbstractContextManager:
        """The context for the forward pass and the loss."""
        return autocast(self.opt_level, self.dtype, self.world)

    def add(self, loss: Tensor) -> None:
        """Backward for a part of a step: its gradients are added to those of the parts before, with the same scale.

        At O2 the sum is one of half-precision numbers; one that is not finite stays so, and the step is skipped.
        """
        mark("backward")
        is_first = all(weight.grad is None for weight in self.model.parameters())
        self.scaler.scale(loss).backward()
        if is_first:  # a recorded network gives tensors that its next backward pass writes over
            for weight in self.model.parameters():
                weight.grad = None if weight.grad is None else weight.grad.clone()

    def step(self, loss: Tensor) -> None:
        """Backward, optimizer step unless a gradient is not finite, and gradients set to none."""
        mark("backward")
        self.scaler.scale(loss).backward()
        self._give_gradients_to_masters()
        self.scaler.unscale_(self.optimizer)
        overflow = sum(self.scaler._found_inf_per_device(self.optimizer).values())
        if self.clip_norm:
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(self.static_scale)
        self.skipped_steps += (overflow > 0).to(torch.int64)
        with torch.no_grad():
            if self.masters:
                halves, masters = zip(*self.masters, strict=True)
                torch._foreach_copy_(halves, masters)  # all in a few launches
            for half, _ in self.masters:
                half.grad = None
        self.optimizer.zero_grad()  # to none, except by optimizers that own the gradients
        if self.average is not None:
            self.average.update()

    @property
    def evaluated(self) -> nn.Module:
        """The network that an evaluation scores: the average where there is one."""
        return self.average.model if self.average else self.model

    def _give_gradients_to_masters(self) -> None:
        """In float32, all in a few launches."""
        for half, master in self.masters:
            if half.grad is None:
                master.grad = None
            elif master.grad is None:  # else it may be a part of a tensor that the optimizer owns
                master.grad = torch.empty_like(master)
        pairs = [(master.grad, half.grad) for half, master in self.masters if half.grad is not None]
        if pairs:
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))

    @property
    def is_dynamic(self) -> bool:
        """Whether the loss scale follows the gradients."""
        return self.static_scale is None

    def loss_scale(self) -> float:
        """The present loss scale (waits for the device)."""
        return self.scaler.get_scale()

    def scale_of_step(self) -> Tensor | float:
        """The loss scale of a step that is not done yet: a number or, where it changes, a copy on the device."""
        scale = self.scaler._scale if self.is_dynamic else None
        if scale is None:  # the scaler makes it in its first step
            return self.static_scale or self.scaler._init_scale
        return scale.clone()

    def model_state(self) -> dict[str, Tensor]:
        """The model's state dict with float32 weights, at every opt level: the file loads anywhere."""
        state = self.model.state_dict()
        master_of = {id(half): master for half, master in self.masters}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if id(parameter) in master_of:
                state[name] = master_of[id(parameter)].detach()
        return state

    def load_model_state(self, state: dict[str, Tensor]) -> None:
        """Load a state dict of float32 weights into the model, and into the masters where there are any."""
        self.model.load_state_dict(state)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        with torch.no_grad():
            for half, master in self.masters:
                master.copy_(state[names[id(half)]])

    def state_dict(self) -> dict:
        """Loss scale, its growth counter and the number of skipped steps."""
        return {
            "scaler": self.scaler.state_dict(),
            "dynamic": self.static_scale is None,
            "skipped_steps": self.skipped_steps.item(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue with the state of an earlier run; a fixed scale (1 for float32) says nothing about a dynamic one."""
        if self.static_scale is None and state["dynamic"]:
            self.scaler.load_state_dict({"dynamic": True, **state["scaler"]})  # a key that the plugin's has besides
        self.skipped_steps.fill_(state["skipped_steps"])

    def _make_masters(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Turn weights outside normalisation layers into half precision and give the optimizer float32 copies."""
        kept = {id(p) for m in self.model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
        masters = []
        for group in self.optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                if id(parameter) not in kept:
                    master = nn.Parameter(parameter.detach().clone().float())
                    parameter.data = parameter.data.to(DTYPES[self.dtype])
                    group["params"][index] = master
                    masters.append((parameter, master))
        return masters

    def _start_momentum(self) -> None:
        """Begin with a momentum of zero, which gives the same first step as none (without dampening).

        A fused SGD makes its buffers in its first step, and leaves them unwritten memory when that step is skipped,
        as the first step of a dynamic scale often is.
        """
        for group in self.optimizer.param_groups:
            if group.get("fused") and group.get("momentum"):
                for parameter in group["params"]:
                    self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
