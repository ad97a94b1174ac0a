"""Bytes from strangers become typed frames or typed bad frames; nothing here raises.

The gateway is registered by a generic handler with these deserializers, because generated ones turn a malformed frame
into UNKNOWN with exception text, and parse a frame of any size before anyone can refuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2

MAX_UNARY_BYTES = 64 * 1024

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class BadFrame:
    """What arrived was no frame."""

    reason: Reason
    detail: str

    def refusal(self) -> Refusal:
        """As a refusal for the sender."""
        return Refusal(self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """Largest frames in bytes; told to the node in its welcome."""

    frame: int = 1024 * 1024
    telemetry: int = 64 * 1024


def node_frame(raw: bytes, limits: FrameLimits) -> gateway_pb2.NodeFrame | BadFrame:
    """Deserializer of Connect."""
    if len(raw) > limits.frame:
        return BadFrame(Reason.FRAME_TOO_LARGE, f"a frame has {len(raw)} bytes; at most {limits.frame} are taken")
    try:
        frame = gateway_pb2.NodeFrame.FromString(raw)
    except DecodeError:
        return BadFrame(Reason.MALFORMED, "a frame is not a NodeFrame")
    kind = frame.WhichOneof("frame")
    if kind is None:
        return BadFrame(
            Reason.MALFORMED, "a frame holds nothing that this server knows: is the node newer than the server?"
        )
    if kind == "telemetry" and len(frame.telemetry) > limits.telemetry:
        return BadFrame(
            Reason.FRAME_TOO_LARGE,
            f"a telemetry frame has {len(frame.telemetry)} bytes; at most {limits.telemetry} are taken",
        )
    return frame


def unary(message_type: type[M]) -> Callable[[bytes], M | BadFrame]:
    """Deserializer of a unary request of `message_type`, at most 64 KiB."""

    def deserialize(raw: bytes) -> M | BadFrame:
        if len(raw) > MAX_UNARY_BYTES:
            return BadFrame(
                Reason.FRAME_TOO_LARGE, f"the request has {len(raw)} bytes; at most {MAX_UNARY_BYTES} are taken"
            )
        try:
            return message_type.FromString(raw)
        except DecodeError:
            return BadFrame(Reason.MALFORMED, f"the request is no {message_type.DESCRIPTOR.name}")

    return deserialize


def node_control(body: bytes) -> gateway_pb2.NodeControl:
    """Parse the body of an authenticated control frame.

    Raises:
        Refusal: MALFORMED.
    """
    try:
        control = gateway_pb2.NodeControl.FromString(body)
    except DecodeError as error:
        raise Refusal(Reason.MALFORMED, "a control body is not a NodeControl") from error
    if control.WhichOneof("body") is None:
        raise Refusal(Reason.MALFORMED, "a control body holds nothing that this server knows")
    return control
