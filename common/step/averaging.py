"""--ema: an exponential moving average of the weights, which is evaluated and kept in place of the last ones.

"Acceleration of stochastic approximation by averaging" (Polyak and Juditsky, 1992) is the idea, and "Mean teachers are
better role models" (arXiv:1703.01780) uses it as here. It is what `--model-ema` of timm's train.py does.
"""

import copy

import torch
from torch import nn


class MovingAverage:
    """A second network, in eval mode, whose weights follow those of the training.

    After the 0-based step s of the average, average = d * average + (1 - d) * weights, with
    d = min(decay, (1 + s) / (10 + s)): the rule of TensorFlow's ExponentialMovingAverage(num_updates=s), by which the
    initial weights do not weigh for long. `updates` counts these steps.

    The running statistics of batch norms are averaged too, as by timm's ModelEmaV3 and Lightning's WeightAveraging:
    they are then of about the same steps as the weights. `torch.optim.swa_utils.AveragedModel` copies them by itself
    and leaves it to the user to compute them anew (`update_bn`), which needs another pass over the training set.
    Counters of batches are copied.

    A step that was skipped counts as a step with the weights that there are: to leave it out, the host would have to
    wait for the device. All is done in two launches for each kind of tensor.

    model: the trained one, on its device; masters: its half-precision weights with their float32 copies, which are
    what is averaged (`common.step.amp`).
    """

    def __init__(self, model: nn.Module, masters: list[tuple[nn.Parameter, nn.Parameter]], decay: float):
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        master_of = {id(half): master for half, master in masters}
        pairs = []  # (tensor of the average, what it follows)
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            source = master_of.get(id(weight), weight)
            average.data = source.detach().clone()
            pairs.append((average, source))
        pairs += zip(self.model.buffers(), model.buffers(), strict=True)
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, weights = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self._copy(self._copied)

    def state_dict(self) -> dict:
        """{"updates": their number, "model": the state dict of the average}."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict | None) -> None:
        """Continue with the average of an earlier run; without one it begins anew, with the weights as they are now."""
        if state is None:
            self.updates = 0
            self._copy(self._averaged + self._copied)
        else:
            self.updates = state["updates"]
            self.model.load_state_dict(state["model"])

    @staticmethod
    def _copy(pairs: list) -> None:
        if pairs:
            targets, sources = zip(*pairs, strict=True)
            torch._foreach_copy_(targets, sources)
