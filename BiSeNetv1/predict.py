"""Colour the classes that a trained BiSeNetV1 sees in pictures: a mask, an overlay and class ids for each."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from BiSeNetv1 import presets
from common.scores.predict import parse_predict_args, predict

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_predict_args({"backbone": presets.CHOICES["backbone"]}, description=__doc__)

    from BiSeNetv1.data import INFO
    from BiSeNetv1.model import build_model
    from BiSeNetv1.weights import from_reference
    from common.device.exits import exit_codes

    with exit_codes():
        predict(ARGS, build_model, from_reference, INFO)
