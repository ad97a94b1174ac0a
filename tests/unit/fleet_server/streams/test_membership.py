"""What an operator decides about a node reaches its live stream, whatever the node does."""

import asyncio
from types import SimpleNamespace

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2, gateway_pb2
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.wire import Wire


async def test_a_suspension_reaches_the_node_and_ends_its_stream(wire: Wire) -> None:
    wire.nodes.row.state, wire.nodes.row.state_reason = "SUSPENDED", "being serviced"
    wire.stream.refresh_membership()
    refusal = await wire.wait_refusal()
    goaway, error = wire.heard()
    assert goaway.goaway.reason == gateway_pb2.GOAWAY_REASON_SUSPENDED
    assert "being serviced" in error.error.detail
    assert refusal.reason is Reason.SUSPENDED


@pytest.mark.parametrize("writer", ["slow", "away"])
async def test_a_suspension_waits_for_nothing_that_the_node_told(wire: Wire, writer: str) -> None:
    """A node in wrong hands tells as much as it may: what is recorded of that must not keep it from being sent away."""
    if writer == "slow":
        wire.commands.record_statement_refused = lambda *_: asyncio.Event().wait()  # type: ignore[method-assign,assignment]
    wire.commands.away = [Refusal(Reason.UNAVAILABLE, "away")] * 100
    for _ in range(40):
        await wire.say(statement_refused=command_pb2.StatementRefused(reason="GAP"))
        await wire.say(command_refused=command_pb2.CommandRefused(monotonic_seq=1))
    wire.nodes.row.state = "REVOKED"
    wire.stream.refresh_membership()
    assert (await wire.wait_refusal()).reason is Reason.REVOKED


async def test_a_decision_that_overtook_the_claim_reaches_the_stream(clock: MockClock) -> None:
    """Committed after the claim, and told before the stream could hear of it."""
    wire = Wire(clock)
    wire.nodes.row = SimpleNamespace(**vars(wire.nodes.row) | {"state": "REVOKED", "state_reason": "stolen"})
    wire.nodes.decisions += 1
    refusal = await wire.wait_refusal()
    assert refusal.reason is Reason.REVOKED


async def test_a_drain_is_ordered_once_and_its_end_too(wire: Wire) -> None:
    for state in ("DRAINING", "DRAINED", "NONE", "NONE"):
        wire.nodes.row.drain_state = state
        wire.stream.refresh_membership()
        await wire.settle()
    assert [control.drain.drain for control in wire.heard()] == [True, False]


async def test_only_a_node_on_which_nothing_runs_is_drained(wire: Wire) -> None:
    await wire.say(drained=gateway_pb2.Drained(drained=True, running=2))
    assert wire.nodes.drained == []
    await wire.say(drained=gateway_pb2.Drained(drained=True))
    assert wire.nodes.drained == ["n"]


async def _overtaken(wire: Wire, takeover_of: str) -> None:
    """Another replica welcomed a newer stream of the node, and this one's next claim is refused for it."""
    row = wire.nodes.row
    row.stream_epoch, row.stream_id, row.takeover_of = 2, "elsewhere", takeover_of
    wire.commands.claim_pending = _stale  # type: ignore[method-assign]
    wire.stream.commands.wake()
    await wire.settle()


async def _stale(*_: object, **__: object) -> list[object]:
    raise Refusal(Reason.SUPERSEDED, "the stream has epoch 1, the newest of its node is 2")


async def test_a_stream_that_a_takeover_elsewhere_overtook_has_its_last_words(wire: Wire) -> None:
    await _overtaken(wire, takeover_of=wire.stream.stream_id)
    assert not wire.stream.ended
    assert wire.kinds() == [], "and is told nothing: the node knows"
    await wire.say(reports=command_pb2.ReportList(reports=[command_pb2.Report(report_no=1, monotonic_seq=1)]))
    assert len(wire.commands.recorded) == 1
    wire.nodes.row.drain_state = "DRAINING"
    wire.stream.refresh_membership()
    await wire.settle()
    assert wire.stream.commands.held, "whatever is decided of the node meanwhile: nothing more is sent here"
    assert "drain" not in wire.kinds()
    await wire.say(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
    await asyncio.wait_for(wire.running, 5)
    assert wire.stream.close_reason == "GOODBYE_TAKEOVER"


@pytest.mark.parametrize("takeover_of", ["", "another"])
async def test_a_half_open_stream_that_was_replaced_elsewhere_is_ended(wire: Wire, takeover_of: str) -> None:
    await _overtaken(wire, takeover_of)
    assert (await wire.wait_refusal()).reason is Reason.SUPERSEDED
    assert [control.goaway.reason for control in wire.heard()][:1] == [gateway_pb2.GOAWAY_REASON_SUPERSEDED]


async def test_a_stream_that_hears_of_a_newer_one_elsewhere_sends_nothing_more(wire: Wire) -> None:
    """It is told by the wake-up, before it claims anything."""
    row = wire.nodes.row
    row.stream_epoch, row.stream_id, row.takeover_of = 2, "elsewhere", wire.stream.stream_id
    wire.stream.refresh_membership()
    await wire.settle()
    assert wire.stream.commands.held
    assert not wire.stream.ended


async def test_a_stream_refused_as_stale_whose_row_says_otherwise_ends(wire: Wire) -> None:
    """A database that went back in time has an older epoch: nobody may go on with a lane that stands still."""
    wire.commands.claim_pending = _stale  # type: ignore[method-assign]
    wire.stream.commands.wake()
    assert (await wire.wait_refusal()).reason is Reason.SUPERSEDED
