"""The table of an evaluation: what is counted of each class."""

from collections.abc import Sequence

from torch import Tensor


def class_table(confusion: Tensor, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """class name -> its pixels in truth and in prediction, and its scores in [0, 1]; None for 0 / 0, as in JSON.

    confusion: [C, C] int64, a row for each true class, a column for each predicted one. With TP, FP, FN of a class:
    iou TP / (TP + FP + FN), accuracy (recall) TP / (TP + FN), precision TP / (TP + FP), dice 2 TP / (2 TP + FP + FN).
    """
    rows = {}
    for number, name in enumerate(names):
        right = confusion[number, number].item()
        true, predicted = confusion[number].sum().item(), confusion[:, number].sum().item()
        rows[name] = {
            "truth_pixels": true,
            "predicted_pixels": predicted,
            "iou": _share(right, true + predicted - right),
            "accuracy": _share(right, true),
            "precision": _share(right, predicted),
            "dice": _share(2 * right, true + predicted),
        }
    return rows


def absent(table: dict[str, dict[str, float | None]]) -> list[str]:
    """The classes that are neither in the truth nor in the prediction: they have no IoU, and no mean counts them."""
    return [name for name, row in table.items() if not row["truth_pixels"] and not row["predicted_pixels"]]


def never_predicted(table: dict[str, dict[str, float | None]]) -> list[str]:
    """The classes that are in the truth, and of which the network has found nothing: their IoU is 0."""
    return [name for name, row in table.items() if row["truth_pixels"] and not row["predicted_pixels"]]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
