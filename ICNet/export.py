"""Write a trained ICNet as an ONNX or OM file, which is compared with it first."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.scores.export import export, parse_export_args
from ICNet import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_export_args({"backbone": presets.CHOICES["backbone"]}, "1024x2048", description=__doc__)

    from common.device.exits import exit_codes
    from ICNet.data import INFO
    from ICNet.model import build_model
    from ICNet.weights import from_reference

    with exit_codes():
        export(ARGS, build_model, from_reference, INFO)
