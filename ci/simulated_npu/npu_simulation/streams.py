"""Streams and events that do everything at once, and yet know in which order a real device would have to do it.

Operations of one stream follow each other; those of two streams only where one has waited for the other. What uses
memory that another stream is still working on, as far as the waits say, raises RuntimeError: on a device it would read
or destroy unfinished data now and then.
"""

import contextlib
import threading
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from npu_simulation.counters import COUNTERS
from npu_simulation.memory import Block, block_of, set_block

_streams: list["Stream"] = []  # all of them; while it is the default one alone, everything is in order
_host_seen: dict["Stream", int] = {}  # how far the host has waited
_freed: list[Block] = []  # given back while streams other than their own were using them
_local = threading.local()


class Stream:
    """torch.npu.Stream. `now` counts its operations, `seen` how far it has waited for others."""

    def __init__(self, device=None, priority: int = 0, **_):
        self.priority = priority
        self.now, self.seen = 0, {}
        self.stream_id = len(_streams)
        _streams.append(self)

    @property
    def device(self) -> torch.device:
        return torch.device("npu", 0)

    def __repr__(self) -> str:
        return f"<torch.npu.Stream {self.stream_id}>"

    def wait_stream(self, stream: "Stream") -> None:
        _merge(self.seen, stream.clock())

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def synchronize(self) -> None:
        """Let the host wait."""
        COUNTERS.wait("synchronize")
        _merge(_host_seen, self.clock())

    def clock(self) -> dict["Stream", int]:
        """Operations of each stream that are done when this one is."""
        return {**self.seen, self: self.now}

    def knows(self, stream: "Stream", operation: int) -> bool:
        """Whether that operation is done before whatever comes next on this stream."""
        return stream is self or max(self.seen.get(stream, 0), _host_seen.get(stream, 0)) >= operation

    def __enter__(self) -> "Stream":
        self._outer = current_stream()
        set_stream(self)
        return self

    def __exit__(self, *_) -> None:
        set_stream(self._outer)


class Event:
    """torch.npu.Event: a point in the work of a stream, and the time at which it was recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self.enable_timing, self._clock, self._seconds = enable_timing, {}, None

    def record(self, stream: Stream | None = None) -> None:
        self._clock, self._seconds = (stream or current_stream()).clock(), time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        _merge((stream or current_stream()).seen, self._clock)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Let the host wait."""
        COUNTERS.wait("synchronize")
        _merge(_host_seen, self._clock)

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds from this event to `end`."""
        if not (self.enable_timing and end.enable_timing):
            raise RuntimeError("both events need enable_timing=True")
        if self._seconds is None or end._seconds is None:
            raise RuntimeError("both events have to be recorded")
        return 1000 * (end._seconds - self._seconds)


def _merge(seen: dict[Stream, int], clock: dict[Stream, int]) -> None:
    for stream, count in clock.items():
        seen[stream] = max(count, seen.get(stream, 0))


_default = Stream()


def current_stream(device=None) -> Stream:
    return getattr(_local, "stream", _default)


def default_stream(device=None) -> Stream:
    return _default


def set_stream(stream: Stream) -> None:
    _local.stream = stream


def stream(stream: Stream | None):
    """torch.npu.stream: a context in which operations are those of `stream`."""
    return contextlib.nullcontext() if stream is None else stream


def synchronize(device=None) -> None:
    """torch.npu.synchronize: let the host wait for all streams."""
    COUNTERS.wait("synchronize")
    _merge(_host_seen, {each: each.now for each in _streams})


def host_waits() -> None:
    """Let the host wait for the current stream, as fetching a value does."""
    _merge(_host_seen, current_stream().clock())


def record_stream(tensor: Tensor, stream: Stream) -> None:
    """Tensor.record_stream: the memory goes to nobody else before `stream` is done with it."""
    if block := block_of(tensor):
        block.recorded.add(stream)


def allocate(tensor: Tensor) -> Tensor:
    """Note that this new tensor's memory was given to the current stream; RuntimeError if another may still use it."""
    stream = current_stream()
    block = Block(tensor.untyped_storage().nbytes(), stream, _freed)
    set_block(tensor, block)
    for old in [old for old in _freed if old.stream is stream and old.size >= block.size > 0]:
        _freed.remove(old)
        for user, operation in old.foreign_users():
            if not stream.knows(user, operation):
                raise RuntimeError(
                    f"memory of {stream} that {user} may still be using was given back and is used anew; "
                    "Tensor.record_stream keeps it until then"
                )
    return tensor


def use(read: Iterable[Tensor], written: Iterable[Tensor]) -> None:
    """Note an operation of the current stream; RuntimeError where it has not waited for another stream's work."""
    if len(_streams) < 2:
        return
    stream = current_stream()
    stream.now += 1
    for tensor in read:
        if block := block_of(tensor):
            _check(stream, "reads", [block.writer] if block.writer else [])
            block.users[stream] = stream.now
    for tensor in written:
        if block := block_of(tensor):
            _check(stream, "writes", block.users.items())
            block.users[stream] = stream.now
            block.writer = (stream, stream.now)


def _check(stream: Stream, does: str, uses: Iterable[tuple[Stream, int]]) -> None:
    for other, operation in uses:
        if not stream.knows(other, operation):
            raise RuntimeError(
                f"{stream} {does} memory that {other} is working on; it has to wait for it (wait_stream)"
            )
