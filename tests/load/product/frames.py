"""Telemetry frames made beforehand, so that a load process spends its time on sending them.

A frame holds the samples of one moment, a series each, as the node's own encoder makes them; half the series are noisy
gauges with two decimals, half are large whole numbers. Only the head (batch_seq and time) is encoded for each frame.
"""

from __future__ import annotations

import random
import time
from collections import deque
from functools import cache

from fleet.v1 import telemetry_pb2

MAX_FRAME_BYTES = 64 * 1024
_VARIANTS = 8
_DEFINITIONS_PER_FRAME = 500
_HEAD_BYTES = 32


class FrameSource:
    """The frames of one stream: first those that define its series, then samples without end."""

    def __init__(self, samples: int) -> None:
        self._definitions = deque(_definition_tails(samples))
        self._tails = _sample_tails(samples)

    def frame(self, batch_seq: int) -> bytes:
        """The next frame, under this number."""
        tail = self._definitions.popleft() if self._definitions else self._tails[batch_seq % _VARIANTS]
        return _head(batch_seq) + tail


def frame_bytes(samples: int) -> int:
    """Size of a frame of `samples` samples; the variants differ in their values only."""
    return len(_head(1_000_000)) + len(_sample_tails(samples)[0])


@cache
def samples_in_a_full_frame() -> int:
    """The most samples whose frame stays below `MAX_FRAME_BYTES` whatever its number."""
    fits, too_many = 1, MAX_FRAME_BYTES
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if len(_columns(middle, [0.0] * middle)) + _HEAD_BYTES <= MAX_FRAME_BYTES:
            fits = middle
        else:
            too_many = middle
    return fits


def _head(batch_seq: int) -> bytes:
    # Protocol Buffers: parts of a message that are serialised one by one make the message when put together.
    now_ms = time.time_ns() // 1_000_000
    return telemetry_pb2.TelemetryBatch(batch_seq=batch_seq, base_time_ms=now_ms).SerializeToString()


def _columns(samples: int, values: list[float]) -> bytes:
    return telemetry_pb2.TelemetryBatch(
        series=range(samples), time_offset_ms=[0] * samples, values=values
    ).SerializeToString()


@cache
def _sample_tails(samples: int) -> list[bytes]:
    chance = random.Random(samples)
    return [_columns(samples, [_value(chance, number) for number in range(samples)]) for _ in range(_VARIANTS)]


def _value(chance: random.Random, number: int) -> float:
    return float(chance.randrange(10**9)) if number % 2 else round(chance.gauss(50, 10), 2)


@cache
def _definition_tails(samples: int) -> list[bytes]:
    tails = []
    for start in range(0, samples, _DEFINITIONS_PER_FRAME):
        batch = telemetry_pb2.TelemetryBatch()
        for number in range(start, min(start + _DEFINITIONS_PER_FRAME, samples)):
            kind = telemetry_pb2.SERIES_KIND_COUNTER if number % 2 else telemetry_pb2.SERIES_KIND_GAUGE
            batch.definitions.add(series=number, name=f"load.metric.{number}", kind=kind)
        tails.append(batch.SerializeToString())
    return tails
