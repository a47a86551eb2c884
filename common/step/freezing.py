"""--freeze: parts of a network that a training leaves as they are.

`backbone`: the pretrained encoder, for a small data set or as the first part of a fine-tuning. `bn`: every batch norm
computes with the statistics that were loaded, and keeps them with its scale and shift, where a step has too few images
for statistics of its own: "Deep Residual Learning" (arXiv:1512.03385, appendix A) fixes them so for detection,
"Rethinking Atrous Convolution" (arXiv:1706.05587, 4.1) in the second half of its training.
"""

from torch import nn

from common.errors import InputError
from common.step.norm import FrozenBatchNorm2d, replace_batch_norms


def freeze(model: nn.Module, encoder: nn.Module | None, parts: str) -> list[str]:
    """Freeze the parts that the text of --freeze names; returns the lines about it, none for 'none'.

    encoder: the pretrained part of the model; None for one without. Frozen weights require no gradient, so there is no
    way back through them and no exchange between processes, and `common.step.optimizer.trained_groups` keeps them out
    of the optimizer, whose weight decay would move them. Batch norms of a frozen encoder keep their statistics. Call it
    before batch norms are synchronised: frozen ones need not be. Raises InputError for a backbone that is not there.
    """
    names = [] if parts == "none" else parts.split(",")
    if not names:
        return []
    if "backbone" in names:
        if encoder is None:
            raise InputError(
                f"--freeze backbone: {type(model).__name__} has no pretrained encoder; give --freeze bn or none"
            )
        replace_batch_norms(encoder, FrozenBatchNorm2d)
        encoder.requires_grad_(False)
    if "bn" in names:
        replace_batch_norms(model, FrozenBatchNorm2d)
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    for norm in norms:
        norm.eval().requires_grad_(False)
    weights = list(model.parameters())
    frozen = sum(weight.numel() for weight in weights if not weight.requires_grad)
    share = frozen / sum(weight.numel() for weight in weights)
    return [f"--freeze {parts}: {share:.1%} of the weights stay as they are, and the statistics of {len(norms)} norms"]
