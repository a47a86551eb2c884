"""A network in an ONNX file, in the place of the one that it was exported from, for evaluation and prediction."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError


class OnnxNetwork(nn.Module):
    """Runs by onnxruntime, on its fastest device; `options`, `model_class` and `data_info` are what the file tells.

    Raises InputError for a file that cannot be read, was not written by an export.py, or takes bytes.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        if find_spec("onnxruntime") is None:
            raise InputError(f"{path} needs onnxruntime: pip install onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            providers = onnxruntime.get_available_providers()
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own classes, which have no common parent
            said = " ".join(str(error).split())[:160]
            raise InputError(f"{path} cannot be read as an ONNX file ({said}); export it again") from error
        facts = self._session.get_modelmeta().custom_metadata_map
        if not {"model_class", "options", "class_names"} <= facts.keys():
            raise InputError(f"{path} was not written by an export.py of this repository; export the checkpoint again")
        (self._input,), (output,) = self._session.get_inputs(), self._session.get_outputs()
        if self._input.type != "tensor(float)":
            raise InputError(f"{path} takes bytes (--uint8_input); export the checkpoint again without that flag")
        self.path, self.model_class, self.options = Path(path), facts["model_class"], json.loads(facts["options"])
        self.data_info = json.loads(facts["data"]) if "data" in facts else None  # files of earlier versions lack it
        self._classes, self._gives_ids = len(json.loads(facts["class_names"])), output.name == "class_ids"

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] float32 -> logits [B, C, H, W] float32; of a file of class ids 1 for its class, else 0.

        Raises InputError, which is a ValueError, for a size that the file does not take.
        """
        self.check_shape(images.shape)
        batch = self._input.shape[0]
        parts = images.split(batch) if isinstance(batch, int) else [images]
        found = torch.cat([self._run(part, batch) for part in parts])
        if self._gives_ids:
            found = F.one_hot(found.long(), self._classes).permute(0, 3, 1, 2).float()
        return found.to(images.device)

    def _run(self, images: Tensor, batch: int | str) -> Tensor:
        """What the file gives for these images, which are filled up to a batch of its size."""
        missing = batch - len(images) if isinstance(batch, int) else 0
        filled = np.concatenate([images.cpu().numpy()] + [np.zeros((1, *images.shape[1:]), np.float32)] * missing)
        try:
            (found,) = self._session.run(None, {self._input.name: filled})
        except Exception as error:  # onnxruntime's own classes, which have no common parent
            height, width = images.shape[2:]
            said = " ".join(str(error).split())[:100]
            reason = "the sides have to be multiples of 32" if height % 32 or width % 32 else said
            raise InputError(
                f"{self.path} does not take images of {height} x {width} pixels ({reason}); use the checkpoint itself, "
                f"or export it with --size={height}x{width}"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(found[: len(images)]))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError, which is a ValueError, for images of a size that the file does not take."""
        wanted = self._input.shape[2:]
        if any(isinstance(side, int) and side != given for side, given in zip(wanted, shape[2:], strict=True)):
            raise InputError(
                f"{self.path} takes images of {wanted[0]} x {wanted[1]}, and these have {shape[2]} x {shape[3]}; "
                "export the checkpoint with this --size, or with --dynamic size"
            )
