"""Whether a run waits for its data, and what would help."""

from collections.abc import Callable
from typing import NamedTuple

WINDOW_STEPS = 100  # a shorter stretch may be the start of an epoch, or one slow file
MUCH = 0.2  # share of the time
AGAIN_AFTER_STEPS = 1000  # the same advice


class Reading(NamedTuple):
    """How a process of a run reads its data, as far as that can be changed."""

    workers: int  # processes that read for one device
    cores: int  # of the machine, for each of its processes that train
    cached: float  # the share of the images that are kept decoded on disk (--cache, --cache_share); 0: no cache
    first_epoch: bool  # and still being put there, unless an earlier run has done it
    decoder: str  # of PNG files: common.data.decode.decoder_name()


def remedy(reading: Reading) -> tuple[str, str]:
    """(cause, what to do about it): the one thing that promises most, by what is known of the run."""
    workers, cores = reading.workers, reading.cores
    if cores > workers + 1:
        more = min(2 * max(1, workers), cores - 1)
        return "workers", f"--workers {more} instead of {workers} would help; each process of the run has {cores} cores"
    if not reading.cached:
        return "decoding", "--cache DIR would help: it keeps decoded images on disk, and crops are read from there"
    if reading.cached < 1:
        return "share", (
            f"the cache keeps {reading.cached:.0%} of the images, and the others are decoded each time: a larger "
            "--cache_share would help, on a disk with room for it"
        )
    if reading.first_epoch and reading.decoder != "imagecodecs":
        return "decoder", (
            f"the first epoch with a new cache decodes every image, PNG files by {reading.decoder}: "
            "pip install imagecodecs does that faster; later epochs read the cache"
        )
    return "cores", (
        f"the cores ({cores} for each process of the run) are used up, and the device could train on more images than "
        "they prepare; smaller crops or fewer augmentations would help, or more cores for each device"
    )


class DataWait:
    """Adds up how long the steps of a run wait for their batches; has advice when that is a large part of the time."""

    def __init__(self):
        self._steps, self._waited_seconds, self._seconds = 0, 0.0, 0.0  # of the present stretch of WINDOW_STEPS
        self._said_cause, self._said_step = None, 0

    def advice(
        self, step: int, steps: int, waited_seconds: float, seconds: float, reading: Callable[[], Reading]
    ) -> str | None:
        """A line for people or, nearly always, None. Call it after `steps` more steps, the last of which is `step`.

        They took `seconds`, `waited_seconds` of which passed while waiting for batches. `reading` is asked only when
        that is MUCH over WINDOW_STEPS. The same cause is not named again before AGAIN_AFTER_STEPS.
        """
        self._steps += steps
        self._waited_seconds += waited_seconds
        self._seconds += seconds
        if self._steps < WINDOW_STEPS:
            return None
        counted, share = self._steps, self._waited_seconds / self._seconds if self._seconds else 0.0
        self._steps, self._waited_seconds, self._seconds = 0, 0.0, 0.0
        if share <= MUCH:
            return None
        cause, what_to_do = remedy(reading())
        if cause == self._said_cause and step - self._said_step < AGAIN_AFTER_STEPS:
            return None
        self._said_cause, self._said_step = cause, step
        return f"the last {counted} steps waited for data {share:.0%} of the time: {what_to_do}"
