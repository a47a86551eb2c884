"""data/loading.py: batches that do not depend on processes or workers."""

import multiprocessing
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

import common.data.loading
from ci.tests.common_workers import Keyed, Scenes, world
from ci.tests.folders import ROOT
from ci.tests.samples import Finished
from common.data.loading import batches, eval_batches, worker_count
from common.data.order import StepRange, StepSampler
from common.device.world import World, seed_step
from common.errors import InputError


def test_batches_are_the_same_with_any_number_of_workers():
    steps = StepRange(device_batch_size=3, seed=4, first_step=2, total_steps=7)
    expected = list(StepSampler(8, steps, world()))
    for workers in (0, 1, 2):
        items = list(batches(Keyed(8), steps, world(), workers))
        assert [step for step, _, _ in items] == [2, 3, 4, 5, 6]
        for (_, images, target), step_keys in zip(items, expected, strict=True):
            assert (images.shape, images.dtype) == ((3, 3, 2, 2), torch.float32)
            assert (target.shape, target.dtype) == ((3, 2, 2), torch.int64)
            assert images[:, 0, 0, 0].tolist() == [1.5 * index for _, index in step_keys]
            assert target[:, 0, 0].tolist() == [epoch for epoch, _ in step_keys]


def test_what_is_random_in_a_step_depends_on_seed_rank_and_step_alone():
    drawn = {}
    for rank in (0, 1):
        stream = batches(Keyed(8), StepRange(2, 4, 0, 4), world(rank, 2), 0)
        drawn[rank] = [torch.rand(3).tolist() for _ in stream]
    resumed = [torch.rand(3).tolist() for _ in batches(Keyed(8), StepRange(2, 4, 2, 4), world(), 0)]
    assert resumed == drawn[0][2:]
    assert len({tuple(values) for values in drawn[0] + drawn[1]}) == 8
    seed_step(4, world(1, 2), 3)
    assert torch.rand(3).tolist() == drawn[1][3]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_input_error_of_a_worker_arrives_with_its_message_when_its_batch_is_due(workers):
    steps = StepRange(2, 0, 0, 4)
    order = [index for step in StepSampler(8, steps, world()) for _, index in step]
    stream = batches(Keyed(8, broken=(order[5],)), steps, world(), workers)
    assert [next(stream)[0], next(stream)[0]] == [0, 1]
    with pytest.raises(InputError) as error:
        next(stream)
    assert str(error.value) == f"image {order[5]}.png cannot be read; copy it again"


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 4, 50])
def test_evaluation_shows_every_image_once_to_one_process(size, batch):
    found = Counter()
    for rank in range(size):
        for images, target, _ in eval_batches(Scenes(7), batch, world(rank, size), 0):
            assert len(images) == len(target) <= batch
            assert images.shape[2:] == target.shape[1:]
            found.update(image.numpy().tobytes() for image in images)
    assert found == Counter(Finished(Scenes(7))[index][0].numpy().tobytes() for index in range(7))


def test_evaluation_keeps_image_and_target_together_when_sizes_are_mixed():
    scenes = Finished(Scenes(7))
    truth = {image.numpy().tobytes(): target for image, target in (scenes[index] for index in range(7))}
    sizes = []
    for images, target, indices in eval_batches(Scenes(7), 4, world(), 1):
        sizes.append(tuple(images.shape))
        for image, labels, index in zip(images, target, indices.tolist(), strict=True):
            assert torch.equal(labels, truth[image.numpy().tobytes()])
            assert torch.equal(image, scenes[index][0])
    first, second = [(2, 3, 6, 9), (1, 3, 6, 5), (1, 3, 4, 5)], [(1, 3, 6, 5), (1, 3, 4, 5), (1, 3, 6, 9)]
    assert sizes == first + second  # of the images 0 1 2 3 and 4 5 6


def test_a_process_without_a_share_of_the_evaluation_gets_nothing():
    assert list(eval_batches(Scenes(2), 2, world(2, 3), 0)) == []


def test_an_input_error_in_evaluation_arrives_too():
    with pytest.raises(InputError, match="^label 2.png holds 77$"):
        list(eval_batches(Scenes(3, broken=(2,)), 2, world(), 1))


@pytest.mark.parametrize(
    "cores, processes, device, expected",
    [
        (64, 1, "cuda", 16),
        (64, 8, "cuda", 7),
        (192, 8, "npu", 16),
        (8, 1, "cuda", 7),
        (8, 1, "cpu", 4),
        (2, 1, "cpu", 1),
        (1, 1, "cpu", 1),
        (4, 8, "cuda", 1),
    ],
)
def test_auto_shares_the_cores_out(monkeypatch, cores, processes, device, expected):
    monkeypatch.setattr(common.data.loading, "cpu_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    place = World(torch.device("cpu") if device == "cpu" else torch.device("cuda", 0))
    assert worker_count("auto", place) == expected


def test_a_number_of_workers_is_taken_as_it_is():
    assert worker_count(0, world()) == 0
    assert worker_count(40, world()) == 40


HAMMERED_FORKS = """
import ctypes, os, sys, threading, time
import common.data.loading

entered = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: None)
create, join = ctypes.CDLL(None).pthread_create, ctypes.CDLL(None).pthread_join
create.argtypes, join.argtypes = [ctypes.c_void_p] * 4, [ctypes.c_ulong, ctypes.c_void_p]

def enter_the_interpreter_all_the_time():
    thread = ctypes.c_ulong()
    while True:
        create(ctypes.byref(thread), None, entered, None)
        join(thread, None)

for _ in range(4):
    threading.Thread(target=enter_the_interpreter_all_the_time, daemon=True).start()
for _ in range(250):
    if (child := os.fork()) == 0:
        os._exit(0)
    for _ in range(5000):
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.001)
    else:
        os.kill(child, 9)
        print("a forked process never woke up", flush=True)
        os._exit(1)
os._exit(0)
"""


class Parents(Keyed):
    """Items whose target tells who has started the process that reads them."""

    def __getitem__(self, key):
        image, target, draws = super().__getitem__(key)
        return image, torch.full(target.shape, os.getppid()), draws


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers start as the system has it")
def test_workers_are_children_of_the_process_that_trains_whatever_python_starts_by_default(monkeypatch):
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # the default of Python 3.14
    try:
        ((_, _, target),) = batches(Parents(8), StepRange(2, 0, 0, 1), world(), 1)
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert target.unique().tolist() == [os.getpid()]


@pytest.mark.skipif(sys.platform != "linux", reason="forks and native threads as Linux has them")
def test_workers_that_are_forked_beside_busy_threads_wake_up():
    """One in some hundred does not, with Python up to 3.11, where nothing is done about it."""
    code = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", HAMMERED_FORKS]
    done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
