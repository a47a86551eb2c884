"""data/order.py: which sample comes when."""

import numpy as np
import pytest

from ci.tests.common_workers import world
from common.data.order import StepRange, StepSampler, sample_rng, steps_in_epoch
from common.errors import InputError


def keys(length=11, batch=2, rank=0, size=1, seed=0, first=0, total=15):
    return list(StepSampler(length, StepRange(batch, seed, first, total), world(rank, size)))


@pytest.mark.parametrize("length, batch", [(11, 2), (12, 3), (5, 5), (7, 4)])
def test_every_epoch_shows_each_image_at_most_once_and_drops_only_the_remainder(length, batch):
    steps = length // batch
    run = keys(length, batch, total=3 * steps)
    for epoch in range(3):
        seen = [key for step in run[epoch * steps : (epoch + 1) * steps] for key in step]
        assert {e for e, _ in seen} == {epoch}
        indices = [index for _, index in seen]
        assert len(set(indices)) == len(indices) == steps * batch
        assert set(indices) <= set(range(length))
    assert all(type(index) is int for step in run for _, index in step)


def test_the_dropped_remainder_differs_between_epochs():
    dropped = set()
    for epoch in range(6):
        run = keys(11, 2, total=30)[epoch * 5 : epoch * 5 + 5]
        dropped |= set(range(11)) - {index for step in run for _, index in step}
    assert len(dropped) > 1


def test_epochs_and_seeds_shuffle_differently():
    one, two = keys(64, 64, total=2)
    other_seed = keys(64, 64, seed=1, total=1)[0]
    orders = [[index for _, index in step] for step in (one, two, other_seed, keys(64, 64, total=1)[0])]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
    assert orders[0] == orders[3]
    assert orders[0] != list(range(64))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_blocks_of_all_ranks_in_a_row_are_the_batch_of_one_process(size):
    alone = keys(26, 12, total=6)
    shares = [keys(26, 12 // size, rank, size, total=6) for rank in range(size)]
    assert [sum(blocks, []) for blocks in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("first", range(15))
def test_a_run_that_starts_at_any_step_is_the_tail_of_the_whole_run(first):
    assert keys(first=first) == keys()[first:]


def test_length_of_the_sampler_is_the_steps_that_are_left():
    assert len(StepSampler(11, StepRange(2, 0, 4, 15), world())) == 11 == len(keys(first=4))


def test_steps_in_epoch():
    assert steps_in_epoch(range(10), 5) == 2
    assert steps_in_epoch(range(9), 5) == 1
    with pytest.raises(InputError, match="^4 training images are fewer than the 5 of one step.*--device_batch_size"):
        steps_in_epoch(range(4), 5)


def test_each_sample_has_a_generator_of_its_own():
    draw = {key: sample_rng(*key).random(4).tobytes() for key in np.ndindex(3, 3, 3)}
    assert len(set(draw.values())) == 27
    assert sample_rng(1, 2, 0).random(4).tobytes() == draw[1, 2, 0]
