"""--accumulate: an optimizer step in several parts, whose gradients are added up; for batches too large for memory.

The step is that of one batch of all its images where every image weighs the same in the loss: a loss that is a mean
over labelled pixels is here the mean of the means of the parts, as it is of the devices. Batch norms see the images of
one part at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from torch import Tensor, nn

from common.step.amp import Amp

Losses = dict[str, Tensor]  # the terms by name


class Parts:
    """Where a run is in its present step of `number` parts: before a training, at the end of one."""

    def __init__(self, number: int):
        self.number, self.is_last = number, True
        self._sums: Losses = {}  # of the losses of the parts so far, on the device

    def of(self, stream: Iterable, network: nn.Module) -> Iterator:
        """The items of `stream`, one for each part.

        network: of the training step; one that is shared between processes exchanges gradients in the last part alone.
        """
        parallel = isinstance(network, nn.parallel.DistributedDataParallel)
        for index, item in enumerate(stream):
            self.is_last = (index + 1) % self.number == 0
            with nullcontext() if self.is_last or not parallel else network.no_sync():
                yield item

    def minimise(self, losses: Losses, amp: Amp) -> Losses | None:
        """The backward pass of a part and, after the last one, the optimizer step.

        Returns the mean losses of the step, and None before it is done.
        """
        if self.number == 1:
            amp.step(sum(losses.values()))
            return losses
        loss = sum(losses.values()) / self.number
        for name, term in losses.items():
            term = term.detach().float() / self.number
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        if not self.is_last:
            amp.add(loss)
            return None
        amp.step(loss)
        sums, self._sums = self._sums, {}
        return sums
