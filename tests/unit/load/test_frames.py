"""Telemetry frames made beforehand are frames that the server takes."""

import itertools

import pytest

from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import rules
from tests.load.product.frames import FrameSource, frame_bytes, samples_in_a_full_frame


@pytest.mark.parametrize("samples", [10, 100, samples_in_a_full_frame()])
def test_every_frame_is_within_the_limit_and_names_only_defined_series(samples: int) -> None:
    source, defined, sampled = FrameSource(samples), 0, 0
    for batch_seq in range(1, 40):
        raw = source.frame(batch_seq)
        assert len(raw) <= rules.MAX_FRAME_BYTES
        batch = telemetry_pb2.TelemetryBatch.FromString(raw)
        defined += len(batch.definitions)
        rules.check_columns(batch, defined)
        assert batch.batch_seq == batch_seq
        sampled += len(batch.values) == samples
    assert defined == samples
    assert sampled >= 20


def test_successive_frames_differ_in_their_values() -> None:
    source = FrameSource(10)
    frames = [telemetry_pb2.TelemetryBatch.FromString(source.frame(number)) for number in range(1, 10)]
    values = [tuple(frame.values) for frame in frames if frame.values]
    assert all(one != other for one, other in itertools.pairwise(values))


def test_a_full_frame_is_nearly_as_large_as_a_frame_may_be() -> None:
    assert rules.MAX_FRAME_BYTES - 64 <= frame_bytes(samples_in_a_full_frame()) <= rules.MAX_FRAME_BYTES
