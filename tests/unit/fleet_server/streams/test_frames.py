"""Bytes from strangers: always a frame or a typed bad frame, never an exception."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Reason, Refusal
from fleet.v1 import enrollment_pb2, gateway_pb2
from fleet_server.streams import frames
from fleet_server.streams.frames import BadFrame, FrameLimits

LIMITS = FrameLimits(frame=4096, telemetry=256)


@given(st.binary(max_size=5000))
def test_any_bytes_become_a_frame_or_a_typed_bad_frame(raw: bytes) -> None:
    found = frames.node_frame(raw, LIMITS)
    if isinstance(found, BadFrame):
        assert found.reason in (Reason.MALFORMED, Reason.FRAME_TOO_LARGE)
        assert found.refusal().detail
    else:
        assert found.WhichOneof("frame") in ("hello", "control", "telemetry")


@given(st.binary(max_size=2000))
def test_any_control_body_is_parsed_or_refused(raw: bytes) -> None:
    try:
        assert frames.node_control(raw).WhichOneof("body")
    except Refusal as refusal:
        assert refusal.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (bytes(4097), Reason.FRAME_TOO_LARGE),
        (gateway_pb2.NodeFrame(telemetry=bytes(257)).SerializeToString(), Reason.FRAME_TOO_LARGE),
        (b"", Reason.MALFORMED),
        (b"\xff\xff\xff", Reason.MALFORMED),
        (b"\xfa\x07\x01x", Reason.MALFORMED),  # a field of a newer protocol, and nothing else
    ],
)
def test_bad_frames_are_named(raw: bytes, reason: Reason) -> None:
    found = frames.node_frame(raw, LIMITS)
    assert isinstance(found, BadFrame)
    assert found.reason is reason


def test_an_oversized_request_is_refused_before_it_is_parsed() -> None:
    found = frames.unary(enrollment_pb2.EnrollRequest)(bytes(frames.MAX_UNARY_BYTES + 1))
    assert isinstance(found, BadFrame)
    assert found.reason is Reason.FRAME_TOO_LARGE
