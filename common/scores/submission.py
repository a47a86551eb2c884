"""Predictions as files that a server of a data set takes (--submission): at each picture's own size."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from common.data.decode import picture_size
from common.data.pictures import LabelledPictures, SubmissionForm
from common.errors import InputError
from common.record.files import writable_folder, write_atomically
from common.scores.drawing import palette_picture
from common.scores.metrics import class_ids
from common.step.losses import at_least_float32


class Submission:
    """The folder --submission, and how what is predicted is written there; processes share the pictures out.

    Raises InputError for two pictures of one name, and for a folder that cannot be written to.
    """

    def __init__(self, folder: str | Path, dataset: LabelledPictures):
        info = dataset.info
        self.form = info.submission or SubmissionForm(
            lambda image, split: Path(f"{image.stem}.png"), lambda ids: palette_picture(ids, info.palette)
        )
        self.pictures, self.exif = [pair[0] for pair in dataset.pairs], dataset.reader.exif
        self.files = [Path(folder, name) for name in names_of(self.pictures, dataset.split, self.form)]
        writable_folder(folder, "--submission")
        self.note = f"{len(self.files)} predictions of the split {dataset.split} are in {folder}"

    def __call__(self, indices: Tensor, logits: Tensor) -> None:
        """Write the predictions of a batch: indices [B] of the pictures, logits [B, C, h, w]."""
        for index, each in zip(indices.tolist(), logits.split(1), strict=True):
            size = picture_size(self.pictures[index], self.exif)
            if tuple(each.shape[-2:]) != size:
                each = F.interpolate(at_least_float32(each), size=size, mode="bilinear", align_corners=False)
            picture = self.form.picture(class_ids(each)[0].to(torch.uint8).cpu().numpy())
            self.files[index].parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.files[index], lambda file, picture=picture: picture.save(file, "PNG"))


def check_submission(args: Namespace, dataset: LabelledPictures | None) -> Submission | None:
    """What --submission asks for; None without it. Raises InputError for what cannot be.

    That is: without --evaluate, of pictures that are cut, and no --submission for pictures without labels.
    """
    folder = args.submission
    if not folder:
        if args.evaluate and not dataset.has_labels:
            raise InputError(
                f"the split {dataset.split} has no labels here, and without them no score; give --submission FOLDER "
                "for its predictions, or another --eval_split"
            )
        return None
    if not args.evaluate:
        raise InputError(f"--submission {folder} is given without --evaluate; give both, with the --checkpoint to use")
    if getattr(args, "eval_protocol", "whole") != "whole":
        raise InputError(f"--submission {folder} is of whole pictures; give --eval_protocol whole")
    return Submission(folder, dataset)


def names_of(pictures: Sequence[Path], split: str, form: SubmissionForm) -> list[Path]:
    """Where the prediction of each picture belongs. Raises InputError where two would be written to one file."""
    files = [form.name(picture, split) for picture in pictures]
    name, count = Counter(files).most_common(1)[0]
    if count > 1:
        first, second = [picture for picture, file in zip(pictures, files, strict=True) if file == name][:2]
        raise InputError(f"the predictions of {first} and {second} would both be {name}; rename one of them")
    return files
