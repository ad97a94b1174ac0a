"""Refusals survive the way over gRPC, and a stranger's bytes in their place do no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from fleet import status
from fleet.errors import Advice, Reason, Refusal, advice

DETAILS = "grpc-status-details-bin"


def failed(
    code: grpc.StatusCode, message: str, trailing: Sequence[tuple[str, str | bytes]] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), message)


def carried(refusal: Refusal) -> Refusal:
    return status.decode(failed(*status.encode(refusal)))


def hostile(*details: any_pb2.Any, message: str = "") -> Refusal:
    rich = status_pb2.Status(code=3, message=message, details=details).SerializeToString()
    return status.decode(failed(grpc.StatusCode.INVALID_ARGUMENT, "plain", [(DETAILS, rich)]))


def packed(message: Any) -> any_pb2.Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_comes_back(reason: Reason) -> None:
    found = carried(Refusal(reason, "what to do", retry_after_s=2.5, metadata={"needed_role": "owner"}))
    assert (found.reason, found.detail, found.retry_after_s) == (reason, "what to do", 2.5)
    assert found.metadata == {"needed_role": "owner"}
    assert status.code(reason) is not grpc.StatusCode.OK


def test_reasons_are_their_own_names() -> None:
    assert [reason.value for reason in Reason] == [reason.name for reason in Reason]
    assert {advice(reason) for reason in Reason} == set(Advice)


def test_no_delay_stays_no_delay() -> None:
    assert carried(Refusal(Reason.OVERLOADED, "full")).retry_after_s is None


@given(
    detail=st.text(max_size=5000),
    metadata=st.dictionaries(st.text(max_size=300), st.text(max_size=300), max_size=40),
    delay_s=st.floats(allow_nan=False) | st.none(),
)
def test_whatever_a_refusal_holds_it_fits_and_comes_back(
    detail: str, metadata: dict[str, str], delay_s: float | None
) -> None:
    code, message, trailing = status.encode(
        Refusal(Reason.ARGUMENTS_INVALID, detail, retry_after_s=delay_s, metadata=metadata)
    )
    assert len(message) <= status.MAX_DETAIL_CHARS
    found = status.decode(failed(code, message, trailing))
    assert found.reason is Reason.ARGUMENTS_INVALID
    assert found.detail == message
    if delay_s is not None:
        assert found.retry_after_s is not None
        assert 0.0 <= found.retry_after_s <= status.MAX_RETRY_AFTER_S


@given(value=st.binary(max_size=200))
def test_random_details_become_a_refusal(value: bytes) -> None:
    found = status.decode(failed(grpc.StatusCode.UNAVAILABLE, "gone", [(DETAILS, value)]))
    assert isinstance(found.reason, Reason)


@given(kind=st.sampled_from(["ErrorInfo", "RetryInfo"]), value=st.binary(max_size=100))
def test_random_bytes_inside_a_detail_become_a_refusal(kind: str, value: bytes) -> None:
    found = hostile(any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=value))
    assert isinstance(found.reason, Reason)


def test_a_broken_detail_hides_nothing_but_itself() -> None:
    found = hostile(any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff"))
    assert (found.reason, found.detail) == (Reason.INTERNAL, "plain")


def test_a_reason_of_a_later_version_is_internal() -> None:
    info = error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain=status.DOMAIN)
    assert hostile(packed(info), message="do this").reason is Reason.INTERNAL


def test_another_systems_details_are_not_ours() -> None:
    theirs = error_details_pb2.ErrorInfo(reason="REVOKED", domain="example.com")
    ours = error_details_pb2.ErrorInfo(reason="DRAINING", domain=status.DOMAIN)
    assert hostile(packed(theirs)).reason is Reason.INTERNAL
    assert hostile(packed(theirs), packed(ours)).reason is Reason.DRAINING
    assert hostile(packed(ours), packed(theirs)).reason is Reason.DRAINING


@pytest.mark.parametrize("seconds", [-(2**63), -1, 2**63 - 1])
def test_no_delay_strands_a_node_or_turns_time_back(seconds: int) -> None:
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain=status.DOMAIN)
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))
    found = hostile(packed(info), packed(retry))
    assert found.retry_after_s is not None
    assert 0.0 <= found.retry_after_s <= status.MAX_RETRY_AFTER_S


def test_no_escape_sequence_reaches_a_terminal_or_a_log() -> None:
    info = error_details_pb2.ErrorInfo(reason="REVOKED", domain=status.DOMAIN, metadata={"a\x1b[2J": "b\r\nfake: line"})
    found = hostile(packed(info), message="\x1b[31mred\x1b[0m\nfake log line\u202e")
    assert found.detail.isprintable()
    assert all(text.isprintable() for pair in found.metadata.items() for text in pair)
    assert status.decode(failed(grpc.StatusCode.INTERNAL, "\x1b[2Jgone")).detail.isprintable()


def test_no_connection_is_told_without_the_words_of_the_c_core() -> None:
    core = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7443: "
    for details in (core + "Failed to connect to remote host: Connection refused", core + "Connection refused"):
        found = status.decode(failed(grpc.StatusCode.UNAVAILABLE, details))
        assert (found.reason, found.detail) == (
            Reason.UNAVAILABLE,
            "no connection to 127.0.0.1:7443: Connection refused",
        )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.UNAVAILABLE),
        (grpc.StatusCode.CANCELLED, Reason.UNAVAILABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED),
        (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.UNAVAILABLE),
    ],
)
def test_failures_without_details(code: grpc.StatusCode, reason: Reason) -> None:
    found = status.decode(failed(code, ""))
    assert found.reason is reason
    assert found.detail
    assert found.retry_after_s is None


# --- over a real connection ------------------------------------------------------------------------------------------

LONGEST = Refusal(
    Reason.ARGUMENTS_INVALID,
    "é" * 5000,
    retry_after_s=1.0,
    metadata={f"key-{number}": "v" * 500 for number in range(40)},
)


@pytest.fixture
async def refusing_target() -> AsyncIterator[str]:
    async def refuse(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(*status.encode(LONGEST))
        return b""

    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Refusing", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_the_longest_refusal_arrives_with_its_reason(refusing_target: str) -> None:
    async with grpc.aio.insecure_channel(refusing_target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Refusing/Call")(b"")
    found = status.decode(caught.value)
    assert found.reason is Reason.ARGUMENTS_INVALID
    assert found.retry_after_s == 1.0
    assert found.detail.startswith("éé")
