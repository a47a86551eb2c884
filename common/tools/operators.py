"""Counts the operators of a computation: what does not depend on how busy a machine is."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Launched(TorchDispatchMode):
    """`counts`: how often each operator ran that does something on a device, which views do not.

    One that torch takes for all weights at once (a fused optimizer) is one. Backward passes are counted too.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.name()] += not operator.is_view
        return operator(*args, **(kwargs or {}))
