"""Write a trained DynamicUNet as an ONNX or OM file, which is compared with it first."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.scores.export import export, parse_export_args
from DynamicUNet import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_export_args({"backbone": presets.CHOICES["backbone"]}, "480x480", description=__doc__)

    from common.device.exits import exit_codes
    from DynamicUNet.data import INFO
    from DynamicUNet.model import build_model
    from DynamicUNet.weights import from_reference

    with exit_codes():
        export(ARGS, build_model, from_reference, INFO)
