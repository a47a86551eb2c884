"""--checkpoint_activations: less memory for a training step, which takes longer ("Training Deep Nets with Sublinear
Memory Cost", arXiv:1604.06174)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.device.world import World
from common.step.compiling import Autocast, blocks_of, twin_of


def recomputed(
    model: nn.Module, network: nn.Module, world: World, shape: Sequence[int], autocast: Autocast
) -> tuple[nn.Module, str]:
    """As `compiled`, but of each block (`blocks_of`) only the input is kept until the way back, where it runs again.

    Outputs and gradients are those of the network itself, and so are the statistics of batch norms, which take note of
    the first run alone. What lies outside of the blocks, the losses among them, is kept as ever.
    """
    twin = twin_of(model)
    blocks = list(blocks_of(twin))
    for block in blocks:
        layers = list(block.modules())
        norms = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training]
        others = [{name: torch.zeros_like(one) for name, one in norm.named_buffers()} for norm in norms]
        # else the state of the generator would be kept and put back for each block
        draws = any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in layers)
        contexts = partial(_first_and_second_run, norms, others)
        block.forward = partial(_run_twice, block.forward, contexts, draws)
    return twin, f"--checkpoint_activations: {len(blocks)} blocks are computed again on the way back"


def _run_twice(forward: Callable, contexts: Callable, draws: bool, *inputs: Tensor | torch.Size) -> Tensor:
    """What `forward` gives, without the memory of what lies between."""
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)


def _first_and_second_run(norms: list[nn.Module], others: list[dict[str, Tensor]]) -> tuple:
    return contextlib.nullcontext(), _statistics_elsewhere(norms, others)


@contextlib.contextmanager
def _statistics_elsewhere(norms: list[nn.Module], others: list[dict[str, Tensor]]) -> Iterator[None]:
    """Batch norms in training mode take note of their batch in `others`, which nobody reads."""
    own = [dict(norm.named_buffers()) for norm in norms]
    _set_buffers(norms, others)
    try:
        yield
    finally:  # also when the second run ends early, as soon as all is there again
        _set_buffers(norms, own)


def _set_buffers(norms: list[nn.Module], buffers: list[dict[str, Tensor]]) -> None:
    for norm, of_norm in zip(norms, buffers, strict=True):
        for name, buffer in of_norm.items():
            setattr(norm, name, buffer)
