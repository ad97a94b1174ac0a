"""Frames that no node would send. The server names what is wrong, ends that stream alone, and forgets nothing."""

import os
import random
from collections.abc import AsyncIterator, Callable

import psutil
import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2, gateway_pb2, route_pb2, telemetry_pb2
from tests.integration.handmade import HandmadeNode, HandmadeStream, hello_body
from tests.integration.installation import Installation
from tests.integration.waiting import eventually

UNKNOWN_FIELD = bytes([15 << 3 | 2, 3]) + b"new"  # field 15, three bytes: what a newer node might send


@pytest.fixture
async def hand(installation: Installation) -> AsyncIterator[HandmadeNode]:
    """A node written by hand, enrolled."""
    async with HandmadeNode(installation, await installation.enroll("n-1")) as node:
        yield node


def control(body: bytes) -> Callable[[HandmadeStream], bytes]:
    """A control frame under a good MAC."""
    return lambda stream: stream.sealed(body).SerializeToString()


def spoiled(**changes: object) -> Callable[[HandmadeStream], bytes]:
    """A good control frame with fields changed after sealing."""

    def make(stream: HandmadeStream) -> bytes:
        frame = stream.sealed(gateway_pb2.NodeControl(pong=gateway_pb2.Pong()).SerializeToString())
        for name, value in changes.items():
            setattr(frame.control, name, value)
        return frame.SerializeToString()

    return make


def plain(frame: gateway_pb2.NodeFrame) -> Callable[[HandmadeStream], bytes]:
    """A frame without a MAC."""
    return lambda _: frame.SerializeToString()


AFTER_WELCOME: dict[str, tuple[Callable[[HandmadeStream], bytes], Reason, str]] = {
    "no frame at all": (lambda _: b"\xff\xff\xff\xff", Reason.MALFORMED, "not a NodeFrame"),
    "empty": (lambda _: b"", Reason.MALFORMED, "newer than the server"),
    "unknown oneof": (lambda _: UNKNOWN_FIELD, Reason.MALFORMED, "newer than the server"),
    "truncated": (lambda stream: spoiled()(stream)[:-7], Reason.MALFORMED, "not a NodeFrame"),
    "oversized": (lambda _: b"\x12" * (1024 * 1024 + 1), Reason.FRAME_TOO_LARGE, "at most 1048576"),
    "oversized telemetry": (
        plain(gateway_pb2.NodeFrame(telemetry=b"x" * (64 * 1024 + 1))),
        Reason.FRAME_TOO_LARGE,
        "at most 65536",
    ),
    "telemetry that is none": (plain(gateway_pb2.NodeFrame(telemetry=b"\xff" * 40)), Reason.MALFORMED, "telemetry"),
    "second hello": (plain(gateway_pb2.NodeFrame(hello=gateway_pb2.Hello())), Reason.MALFORMED, "second hello"),
    "wrong MAC": (spoiled(mac=b"\0" * 32), Reason.BAD_PROOF, "MAC does not verify"),
    "no MAC": (spoiled(mac=b""), Reason.BAD_PROOF, "MAC does not verify"),
    "changed body": (spoiled(body=b"other"), Reason.BAD_PROOF, "MAC does not verify"),
    "changed counter": (spoiled(counter=7), Reason.BAD_PROOF, "MAC does not verify"),
    "body that is none": (control(b"\xff\xff"), Reason.MALFORMED, "not a NodeControl"),
    "empty body": (control(b""), Reason.MALFORMED, "nothing that this server knows"),
    "body of a newer node": (control(b"\x9a\x06\x00"), Reason.MALFORMED, "nothing that this server knows"),
    "empty reports": (
        control(gateway_pb2.NodeControl(reports=command_pb2.ReportList()).SerializeToString()),
        Reason.MALFORMED,
        "empty list",
    ),
    "route health of nothing": (
        control(gateway_pb2.NodeControl(route_health=route_pb2.RouteHealth()).SerializeToString()),
        Reason.MALFORMED,
        "says nothing",
    ),
}


@pytest.mark.parametrize("case", AFTER_WELCOME)
async def test_a_bad_frame_ends_its_stream_with_a_reason(hand: HandmadeNode, case: str) -> None:
    make, reason, says = AFTER_WELCOME[case]
    async with hand.welcomed() as stream:
        await stream.send_raw(make(stream))
        refusal = await stream.wait_refusal()

    assert refusal.reason is reason
    assert says in refusal.detail
    async with hand.welcomed():
        pass  # and the next stream is welcomed


async def test_frames_left_out_repeated_or_swapped_end_the_stream(hand: HandmadeNode) -> None:
    def pongs(stream: HandmadeStream) -> list[gateway_pb2.NodeFrame]:
        body = gateway_pb2.NodeControl(pong=gateway_pb2.Pong(number=1)).SerializeToString()
        return [stream.sealed(body) for _ in range(3)]

    for order in ([1], [0, 0], [0, 2], [1, 0]):
        async with hand.welcomed() as stream:
            frames = pongs(stream)
            for index in order:
                await stream.send(frames[index])
            refusal = await stream.wait_refusal()
        assert refusal.reason is Reason.BAD_PROOF
        assert "was expected" in refusal.detail


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\xff\xff\xff",
        UNKNOWN_FIELD,
        gateway_pb2.NodeFrame(telemetry=b"early").SerializeToString(),
        gateway_pb2.NodeFrame(control=gateway_pb2.ControlFrame(counter=1, body=b"x", mac=b"y")).SerializeToString(),
        gateway_pb2.NodeFrame(hello=gateway_pb2.Hello()).SerializeToString(),
    ],
    ids=["empty", "garbage", "unknown", "telemetry", "control", "empty hello"],
)
async def test_nothing_but_a_true_hello_opens_a_stream(hand: HandmadeNode, first: bytes) -> None:
    async with hand.connect(await hand.handshake()) as stream:
        await stream.send_raw(first)
        refusal = await stream.wait_refusal()

    assert refusal.reason is Reason.MALFORMED
    assert refusal.detail


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (hello_body(protocol_version=0), "update the node"),
        (hello_body(max_in_flight=0), "max_in_flight"),
        (hello_body(last_accepted_seq=2**63), "journal is damaged"),
        (hello_body(software_version="v\n" * 50), "version"),
        (hello_body(labels={f"k{no}": "v" for no in range(65)}), "at most 64 labels"),
        (
            hello_body(
                drivers=[
                    gateway_pb2.DriverDescriptor(
                        name="x",
                        actions=[
                            gateway_pb2.ActionDescriptor(
                                action="x.y", arguments_schema=b'{"$ref":"http://elsewhere/schema"}'
                            )
                        ],
                    )
                ]
            ),
            "schema is refused",
        ),
        (
            hello_body(
                drivers=[
                    gateway_pb2.DriverDescriptor(
                        name="x",
                        actions=[gateway_pb2.ActionDescriptor(action="x.y", arguments_schema=b" " * 65_537)],
                    )
                ]
            ),
            "schema is refused",
        ),
    ],
    ids=["protocol", "in flight", "counter", "version", "labels", "foreign schema", "large schema"],
)
async def test_a_hello_that_claims_too_much_is_refused(
    hand: HandmadeNode, body: gateway_pb2.HelloBody, says: str
) -> None:
    session = await hand.handshake()
    async with hand.connect(session) as stream:
        await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session, body)))
        refusal = await stream.wait_refusal()

    assert refusal.reason in (Reason.MALFORMED, Reason.PROTOCOL_TOO_OLD)
    assert says in refusal.detail


@pytest.mark.parametrize("method", ["Enroll", "GetBootstrap", "GetTrustChain", "BeginHandshake", "CompleteHandshake"])
async def test_unary_calls_refuse_what_is_too_large_or_no_message(hand: HandmadeNode, method: str) -> None:
    with pytest.raises(Refusal) as large:
        await hand.raw(method, b"\x12" * (64 * 1024 + 1))
    with pytest.raises(Refusal) as garbage:
        await hand.raw(method, b"\xff\xff\xff")

    assert large.value.reason is Reason.FRAME_TOO_LARGE
    assert "at most 65536" in large.value.detail
    assert garbage.value.reason is Reason.MALFORMED


async def test_reports_about_others_commands_change_nothing(installation: Installation, hand: HandmadeNode) -> None:
    """A compromised node cannot forge another's results, nor results of commands that it never got."""
    victim = await installation.add_node("victim")
    work = {"latency_ms": 60_000}
    issued = await installation.owner.issue("victim", action="simulated.work", arguments=work)
    order = issued.issued[0]
    forged = [
        command_pb2.Report(
            report_no=number,
            command_id=command_id,
            monotonic_seq=order.monotonic_seq,
            state=command_pb2.COMMAND_STATE_SUCCEEDED,
        )
        for number, command_id in enumerate((order.command_id, os.urandom(16), b"short"), start=1)
    ]

    async with hand.welcomed() as stream:
        await stream.control(reports=command_pb2.ReportList(reports=forged))
        assert (await stream.wait_control("result_ack")).report_no == 3
        await stream.control(
            cancel_result=command_pb2.CancelResult(
                command_id=order.command_id,
                monotonic_seq=order.monotonic_seq,
                outcome=command_pb2.CANCEL_OUTCOME_TOMBSTONED,
            )
        )
        await stream.control(
            command_refused=command_pb2.CommandRefused(
                command_id=order.command_id, monotonic_seq=order.monotonic_seq, reason="FORGOTTEN"
            )
        )
        await installation.owner.wait_audit("command.refused")

    view = await installation.owner.command(order.command_id)
    assert view.state < command_pb2.COMMAND_STATE_SUCCEEDED
    detail = await installation.owner.wait_audit("command.reported", lambda detail: "unmatched" in detail)
    assert len(detail["unmatched"]) == 3
    assert victim.runs()
    await installation.owner.cancel(order.command_id)


STRINGS = 100_000
OF_THEM_FATAL = 10_000
"""So many stand where the server must end the stream over them; the others travel in fields that it skips."""


async def flood(hand: HandmadeNode, strings: list[bytes], wrap: Callable[[HandmadeStream, bytes], bytes]) -> None:
    """Send them all on one stream, whether it still stands or not."""
    async with hand, hand.welcomed() as stream:
        for data in strings:
            await stream.send_raw(wrap(stream, data))


async def flood_skipped(hand: HandmadeNode, strings: list[bytes]) -> None:
    """Send them, five to a frame, each in a field that only a newer server would know."""
    pong = gateway_pb2.NodeControl(pong=gateway_pb2.Pong(number=1)).SerializeToString()
    async with hand, hand.welcomed() as stream:
        for start in range(0, len(strings), 5):
            fields = (b"\x9a\x06" + bytes([len(data)]) + data for data in strings[start : start + 5])
            await stream.send(stream.sealed(pong + b"".join(fields)))


FATAL: list[Callable[[HandmadeStream, bytes], bytes]] = [
    lambda _, data: b"\xff" + data,
    lambda stream, data: stream.sealed(b"\xff" + data).SerializeToString(),
    lambda _, data: gateway_pb2.NodeFrame(telemetry=b"\xff" + data).SerializeToString(),
    lambda _, data: gateway_pb2.NodeFrame(control=gateway_pb2.ControlFrame(body=data, mac=data)).SerializeToString(),
]


async def test_a_hundred_thousand_random_strings_leave_the_server_standing(hasty: Installation) -> None:
    chance = random.Random(2026)
    victim = await hasty.enroll("victim")
    sleeper = await hasty.add_node("sleeper")
    closes = hasty.server.metrics.streams.closes
    sent, per_stream = 0, 500

    def strings(count: int) -> list[bytes]:
        nonlocal sent
        sent += count
        return [chance.randbytes(chance.randrange(1, 100)) for _ in range(count)]

    async def wave(fatal: int, harmless: int) -> None:
        for number in range(fatal // per_stream):
            await flood(HandmadeNode(hasty, victim), strings(per_stream), FATAL[number % len(FATAL)])
        await flood_skipped(HandmadeNode(hasty, victim), strings(harmless))
        await eventually(lambda: len(hasty.server.streams) == 1, "only the sleeper is left")

    await wave(OF_THEM_FATAL // 5, (STRINGS - OF_THEM_FATAL) // 5)  # caches and pools have their size afterwards
    warm_bytes = psutil.Process().memory_info().rss
    for _ in range(4):
        await wave(OF_THEM_FATAL // 5, (STRINGS - OF_THEM_FATAL) // 5)

    assert sent == STRINGS
    assert psutil.Process().memory_info().rss - warm_bytes < 16 * 1024 * 1024
    refused = sum(closes.labels(str(reason)).value for reason in (Reason.MALFORMED, Reason.BAD_PROOF))
    assert refused == OF_THEM_FATAL // per_stream
    (view,) = await hasty.owner.run("sleeper")
    assert view.state == command_pb2.COMMAND_STATE_SUCCEEDED
    assert sleeper.link.streams_opened == 1


async def test_random_telemetry_batches_that_parse_are_refused_or_taken_but_never_crash(hasty: Installation) -> None:
    hand = HandmadeNode(hasty, await hasty.enroll("n-1"))
    chance = random.Random(7)
    for _ in range(30):
        batch = telemetry_pb2.TelemetryBatch(
            batch_seq=chance.getrandbits(64),
            base_time_ms=chance.getrandbits(63) - 2**62,
        )
        raw = batch.SerializeToString() + chance.randbytes(chance.randrange(0, 8))
        async with hand.welcomed() as stream:
            await stream.send(gateway_pb2.NodeFrame(telemetry=raw))
            await stream.control(goodbye=gateway_pb2.Goodbye(reason="SHUTDOWN"))
            refusal = await stream.wait_refusal()
        assert refusal.reason is not Reason.UNAVAILABLE
        assert "incident" not in refusal.detail
