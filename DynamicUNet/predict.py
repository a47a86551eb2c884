"""Colour the classes that a trained DynamicUNet sees in pictures: a mask, an overlay and class ids for each."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.scores.predict import parse_predict_args, predict
from DynamicUNet import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_predict_args({"backbone": presets.CHOICES["backbone"]}, description=__doc__)

    from common.device.exits import exit_codes
    from DynamicUNet.data import INFO
    from DynamicUNet.model import build_model
    from DynamicUNet.weights import from_reference

    with exit_codes():
        predict(ARGS, build_model, from_reference, INFO)
