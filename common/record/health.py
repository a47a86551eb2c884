"""Numbers of a training that cannot come to good: what is not finite, and what is skipped for it."""

import torch
from torch import Tensor

from common.errors import Diverged

LEAST_LOSS_SCALE = 1.0  # of a dynamic one: below it, fp16 would lose fewer gradients without a scale
MAX_SKIPPED_IN_A_ROW = 40  # with a fixed scale, or none: nothing will change by itself


class Health:
    """Watches the losses and the loss scale of a run; raises Diverged, which names the step."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self._skipped, self._skipped_in_a_row = None, 0  # steps with gradients that are not finite

    def check_losses(self, losses: Tensor, names: list[str], last_step: int, has_checkpoint: bool) -> None:
        """losses [steps, 1 + terms] on the CPU: of each step up to `last_step`, counted from 1, the sum and its terms.

        names: of the terms.
        """
        finite = torch.isfinite(losses)
        if finite.all():
            return
        row = int((~finite).any(1).nonzero()[0])
        step = last_step - len(losses) + row + 1
        bad_terms = [name for name, fine in zip(names, finite[row, 1:].tolist(), strict=True) if not fine]
        plural = "s" if len(bad_terms) > 1 else ""
        which = f" (its {' and '.join(bad_terms)} term{plural})" if bad_terms and len(names) > 1 else ""
        before = "the checkpoints of the run are from before; " if has_checkpoint else "no checkpoint was written yet; "
        raise Diverged(
            f"the loss is {losses[row, 0].item()}{which} at step {step} of {self.total_steps}; {before}"
            "lower --lr, lengthen the warm-up, or try --no_amp",
            step,
            bad_terms or ["loss"],
        )

    def check_amp(self, amp, step: int, steps: int) -> None:
        """After `steps` more steps, the last of which is `step`, counted from 1."""
        self._check_loss_scale(amp, step)
        self._check_skipped(amp.skipped_steps.item(), step, steps)

    def _check_skipped(self, skipped: int, step: int, steps: int) -> None:
        """Raise Diverged when the loss is finite and yet no step has changed anything for long."""
        all_of_them = self._skipped is not None and skipped - self._skipped == steps
        self._skipped, self._skipped_in_a_row = skipped, self._skipped_in_a_row + steps if all_of_them else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"the gradients of the last {self._skipped_in_a_row} steps up to {step} of {self.total_steps} "
                "were not finite, and the steps skipped; lower --lr or a fixed --loss_scale, or try --no_amp",
                step,
                ["gradients"],
            )

    def _check_loss_scale(self, amp, step: int) -> None:
        """Raise Diverged when a dynamic loss scale has fallen so far that small gradients are lost."""
        if amp.is_dynamic and amp.loss_scale() < LEAST_LOSS_SCALE:
            raise Diverged(
                f"the loss scale has fallen to {amp.loss_scale():g} at step {step} of {self.total_steps}, with "
                f"{amp.skipped_steps.item()} skipped steps: gradients overflow fp16 whatever it is; lower --lr, use "
                "--amp_dtype bf16 where the device has it, or --no_amp",
                step,
                ["gradients"],
            )
