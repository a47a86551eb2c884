"""What is looked at of a run's data sets before anything is trained or evaluated."""

from argparse import Namespace

from common.data.cache import check_cache
from common.data.crops import note_on_scale
from common.data.pictures import Datasets


def check_data(args: Namespace, datasets: Datasets) -> None:
    """Raise InputError for a cache that cannot be used, and for labels and pictures that training could not use."""
    train_set, *scored_sets = datasets
    check_cache(args.cache, datasets.used)
    if not args.evaluate and (note := note_on_scale(train_set, datasets.val, args.scales)):
        print(note, flush=True)
    if args.check_data:
        if train_set:
            # training reports a picture when it comes to it
            train_set.check(decode_images=False, most_bad=args.skip_bad)
        for scored_set in filter(None, scored_sets):
            scored_set.check(decode_images=True)
