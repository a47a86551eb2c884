"""Compares a network with numbers that its public reference implementation computed (`golden/`, see golden_fill.py).

A case is a checkpoint, an input and labels that are drawn anew from their names, and what the reference made of them:
outputs, losses, gradients and batch norm statistics, in float32 and in float64. Each `assert_*` method compares by the
type of what it is given and returns the largest deviation. float64 has to agree to 1e-9 (gradients: 1e-7); float32 to
ten times what the reference's own results vary by between kernels, which the case records.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ci.tests.golden import golden_fill

FOLDER = Path(__file__).parent / "golden"
TOLERANCE64 = 1e-9
GRADIENT_TOLERANCE64 = 1e-7
NOISE_FACTOR = 10
KINDS_OF_NOISE = ("rerun", "threads1", "no_onednn", "float64")


class GoldenCase:
    """One case: `manifest` (json), `arrays` (npz), and the data they were recorded from."""

    def __init__(self, name: str):
        self.manifest = golden_fill.load_manifest(FOLDER / f"{name}.json")
        self.arrays = np.load(FOLDER / f"{name}.npz")

    @functools.cached_property
    def state(self) -> dict[str, Tensor]:
        """The reference's checkpoint, float32, under the reference's names."""
        state = golden_fill.fill_state(self.manifest)
        assert golden_fill.sha256_of(state) == self.manifest["state_sha256"], "this numpy draws other numbers"
        return {name: torch.from_numpy(value) for name, value in state.items()}

    def reference_names(self, from_reference: Callable[[Mapping], dict[str, Tensor]]) -> dict[str, str]:
        """Our name of a tensor -> the reference's, as `from_reference` of the folder maps them."""
        names = {id(value): name for name, value in self.state.items()}
        return {ours: names[id(value)] for ours, value in from_reference(self.state).items()}

    def image(self, mode: str, dtype: torch.dtype) -> Tensor:
        """The input [B, 3, H, W] of mode "eval" or "train"."""
        return torch.from_numpy(golden_fill.make_image(self.manifest[mode]["input"])).to(dtype)

    def labels(self) -> Tensor:
        """The labels of mode "train", with the reference's value for ignored pixels."""
        return torch.from_numpy(golden_fill.make_labels(self.manifest["train"]["labels"]))

    def assert_outputs(self, mode: str, outputs: Mapping[str, Tensor]) -> float:
        """Every recorded output, relative to its largest value: the recorded elements, and mean and spread of all."""
        recorded = self.manifest[mode]["outputs"]
        assert set(outputs) == set(recorded)
        largest = 0.0
        for name, output in outputs.items():
            entry, suffix = recorded[name], "64" if output.dtype == torch.float64 else ""
            assert list(output.shape) == entry["shape"], name
            values = output.detach().double().numpy()
            golden = self.arrays[f"{mode}{suffix}.out.{name}"]
            errors = (
                np.abs(golden_fill.strided(values, entry[f"stride{suffix}"]) - golden).max(),
                abs(values.mean() - entry[f"mean{suffix}"]),
                abs(values.std() - entry[f"std{suffix}"]),
            )
            noise = max(entry["noise"][kind] for kind in KINDS_OF_NOISE) / entry["absmax"]
            deviation = max(errors) / entry["absmax"]
            assert deviation <= (TOLERANCE64 if suffix else NOISE_FACTOR * noise), (mode, name, deviation)
            largest = max(largest, deviation)
        return largest

    def assert_losses(self, losses: Mapping[str, Tensor]) -> float:
        """Losses by their names in the manifest, relative to their values."""
        largest = 0.0
        for name, loss in losses.items():
            double = loss.dtype == torch.float64
            golden = self.manifest["train"]["loss64" if double else "loss"][name]
            # The largest noise of any loss: that of a single one is often 0 by chance.
            noise = max(max(self.manifest["train"]["loss_noise"][kind].values()) for kind in KINDS_OF_NOISE) / golden
            deviation = abs(loss.item() - golden) / golden
            assert deviation <= (TOLERANCE64 if double else NOISE_FACTOR * noise), (name, loss.item(), golden)
            largest = max(largest, deviation)
        return largest

    def assert_gradients(self, gradients: Mapping[str, Tensor], loss: str = "grad") -> float:
        """Every gradient of the recorded step by the reference's parameter name: norm, projection and first 8 values.

        loss: "grad" for the gradients of the recorded total loss; "grad_<name>" for those of another one.
        """
        train = self.manifest["train"]
        double = next(iter(gradients.values())).dtype == torch.float64
        prefix = f"train{'64' if double else ''}.{loss}"
        norms, dots = self.arrays[f"{prefix}.norm"], self.arrays[f"{prefix}.dot"]
        firsts = self.arrays.get(f"{prefix}.first8")
        used = [i for i, norm in enumerate(norms) if not np.isnan(norm)]
        assert set(gradients) == {train["params"][i] for i in used}
        # A gradient that is mathematically zero is pure rounding: measure it against the whole gradient.
        floor = train["grad_floor"] * train["grad_total_norm64"]
        deviations, dot_errors = {}, []
        for i in used:
            name = train["params"][i]
            gradient = gradients[name].double().numpy()
            direction = golden_fill.projection(self.manifest["fill"]["seed"], name, gradient.shape)
            dot_errors.append(abs(np.vdot(gradient, direction) - dots[i]))
            errors = [abs(np.linalg.norm(gradient.ravel()) - norms[i]), dot_errors[-1]]
            if firsts is not None:
                first = gradient.ravel()[:8]
                errors.append(np.abs(first - firsts[i, : first.size]).max())
            deviations[name] = max(errors) / max(norms[i], floor)
        worst = max(deviations, key=deviations.get)
        if double:
            assert deviations[worst] <= GRADIENT_TOLERANCE64, (worst, deviations[worst])
        else:
            noise = {
                key: max(train["noise"][kind][f"grad_rel_l2_{key}"] for kind in KINDS_OF_NOISE)
                for key in ("max", "median", "all")
            }
            assert deviations[worst] <= NOISE_FACTOR * noise["max"], (worst, deviations[worst])
            assert np.median(list(deviations.values())) <= NOISE_FACTOR * noise["median"]
            # On random directions, projections of errors have the errors' length on average.
            assert np.linalg.norm(dot_errors) / train["grad_total_norm64"] <= NOISE_FACTOR * noise["all"]
        return deviations[worst]

    def assert_batch_norms(self, state: Mapping[str, Tensor], record: str = "bn") -> float:
        """Running statistics after the recorded float64 step, in a state dict under the reference's names.

        record: "bn" for what the reference does, or the name of a recorded variant of it.
        """
        prefix = f"train64.{record}"
        largest = 0.0
        for i, name in enumerate(self.manifest["train"]["bn_names"]):
            assert state[f"{name}.num_batches_tracked"].item() == self.arrays[f"{prefix}.batches"][i], name
            for statistic, kind in (("running_mean", "mean"), ("running_var", "var")):
                values = state[f"{name}.{statistic}"].numpy()
                norm = self.arrays[f"{prefix}.{kind}_norm"][i]
                error = abs(np.linalg.norm(values) - norm)
                if (full := f"{prefix}.full.{name}.{statistic}") in self.arrays:
                    error = max(error, np.linalg.norm(values - self.arrays[full]))
                assert error <= TOLERANCE64 * norm, (name, statistic, error / norm)
                largest = max(largest, error / norm)
        return largest
