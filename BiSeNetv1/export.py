"""Write a trained BiSeNetV1 as an ONNX or OM file, which is compared with it first."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from BiSeNetv1 import presets
from common.scores.export import export, parse_export_args

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_export_args({"backbone": presets.CHOICES["backbone"]}, "1024x2048", description=__doc__)

    from BiSeNetv1.data import INFO
    from BiSeNetv1.model import build_model
    from BiSeNetv1.weights import from_reference
    from common.device.exits import exit_codes

    with exit_codes():
        export(ARGS, build_model, from_reference, INFO)
