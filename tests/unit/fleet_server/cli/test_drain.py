"""fleetctl drain, resume and replicas."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from fleet.v1 import admin_pb2, gateway_pb2
from fleet_server.cli import drain_replica
from fleet_server.cli.drain_replica import pace
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.made import node


def test_a_drain_whose_server_goes_away_goes_on(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainNodes"] = [
        admin_pb2.DrainNodesResponse(nodes=[node(1, drain_state="DRAINING")], nodes_left=1),
        grpc.StatusCode.UNAVAILABLE,
    ]
    result = ctl.run("drain", "node", "press-1")
    assert result.exit_code == 4
    assert "the drain goes on: `fleetctl nodes list press-1`" in result.stderr
    assert len(ctl.fake.requests("DrainNodes")) == 1, "it may have been ended meanwhile: it is not asked for again"


def test_draining_nodes_waits_until_all_are_drained(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainNodes"] = [
        admin_pb2.DrainNodesResponse(nodes=[node(1, drain_state="DRAINING"), node(2)], nodes_left=2),
        admin_pb2.DrainNodesResponse(nodes=[node(1, drain_state="DRAINED")], nodes_left=1),
        admin_pb2.DrainNodesResponse(nodes=[node(2, drain_state="DRAINED")], nodes_left=0, done=True),
    ]
    result = ctl.run("drain", "node", "press-*", "--deadline", "10m", "--reason", "power")
    assert result.exit_code == 0
    assert [line.split()[2] for line in result.stdout.splitlines()[1:]] == ["DRAINED", "DRAINED"]
    assert "fleetctl resume node 'press-*'" in result.stderr
    request = ctl.fake.requests("DrainNodes")[0]
    assert (request.deadline_s, request.reason) == (600, "power")


def test_a_drain_that_does_not_end_well_says_so(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainNodes"] = [admin_pb2.DrainNodesResponse(nodes=[node(1)], nodes_left=1)]
    result = ctl.run("drain", "node", "press-1")
    assert result.exit_code == 1
    assert "not drained yet: 1 of 1 node" in result.stderr


def test_draining_a_replica_ends_before_the_replica_does(ctl: Fleetctl) -> None:
    replica = admin_pb2.ReplicaView(replica_id="replica-a", state="DRAINING")
    ctl.fake.answers["DrainReplica"] = [
        admin_pb2.DrainReplicaResponse(replica=replica, streams_left=9, streams_total=9, rate_per_s=3, estimate_s=3),
        admin_pb2.DrainReplicaResponse(replica=replica, streams_total=9, done=True),
        grpc.StatusCode.UNAVAILABLE,
    ]
    result = ctl.run("drain", "replica", "replica-a", "--deadline", "1m", "--reason", "upgrade", "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["streams_total"] == 9
    request = ctl.fake.requests("DrainReplica")[0]
    assert (request.deadline_s, request.reason) == (60, gateway_pb2.GOAWAY_REASON_UPGRADE)
    ctl.fake.answers["DrainReplica"] = [admin_pb2.DrainReplicaResponse(streams_left=4, streams_total=9)]
    cut = ctl.run("drain", "replica")
    assert cut.exit_code == 1
    assert "4 streams left" in cut.stderr


def test_drained_nodes_are_resumed(ctl: Fleetctl) -> None:
    ctl.fake.answers["ResumeNodes"] = admin_pb2.ResumeNodesResponse(nodes=[node(1)])
    result = ctl.run("resume", "node", "press-1")
    assert "press-1" in result.stdout
    assert "suspended" not in result.stderr


def test_the_end_of_a_drain_does_not_end_a_suspension_and_says_so(ctl: Fleetctl) -> None:
    ctl.fake.answers["ResumeNodes"] = admin_pb2.ResumeNodesResponse(nodes=[node(1, state="SUSPENDED"), node(2)])
    result = ctl.run("resume", "node", "press-*")
    assert "1 node still suspended: `fleetctl nodes resume press-1`" in result.stderr


def test_replicas_are_listed(ctl: Fleetctl) -> None:
    replica = admin_pb2.ReplicaView(
        replica_id="replica-a", state="READY", streams=5, started_at_ms=NOW_MS - 97_200_000, admission_per_s=212.4
    )
    ctl.fake.answers["ListReplicas"] = admin_pb2.ListReplicasResponse(replicas=[replica])
    row = ctl.run("replicas", "list").stdout.splitlines()[1].split()
    assert row == ["replica-a", "READY", "5", "212/s", "-", "1d03h"]


def test_a_drain_that_moved_no_stream_yet_does_not_say_that_nothing_is_left() -> None:
    begun = admin_pb2.DrainReplicaResponse(streams_left=9, streams_total=9)
    assert pace(begun) == "", "it said 0.0/s, 0.0ms to go"
    begun.rate_per_s, begun.estimate_s = 3.0, 3.0
    assert pace(begun) == "3.0/s, 3.0s to go"


def _replica(state: str, **fields: Any) -> admin_pb2.ReplicaView:
    return admin_pb2.ReplicaView(**{"replica_id": "replica-a", "state": state, "started_at_ms": 5, **fields})


def _draining(**fields: Any) -> admin_pb2.DrainReplicaResponse:
    values: dict[str, Any] = {"replica": _replica("DRAINING"), "streams_left": 9, "streams_total": 9, **fields}
    return admin_pb2.DrainReplicaResponse(**values)


@pytest.mark.parametrize(
    ("found", "exit_code"),
    [
        (_replica("STOPPED"), 0),
        (_replica("STARTING", started_at_ms=6), 0),
        (_replica("LOST"), 1),
    ],
    ids=["stopped", "started anew", "lost"],
)
def test_when_the_replica_that_answers_is_the_one_that_ends_another_is_asked(
    ctl: Fleetctl, found: admin_pb2.ReplicaView, exit_code: int
) -> None:
    ctl.fake.answers["DrainReplica"] = [_draining(), grpc.StatusCode.UNAVAILABLE]
    ctl.fake.answers["ListReplicas"] = [
        grpc.StatusCode.UNAVAILABLE,
        admin_pb2.ListReplicasResponse(replicas=[_replica("DRAINING")]),
        admin_pb2.ListReplicasResponse(replicas=[found]),
    ]
    result = ctl.run("drain", "replica", "replica-a")
    assert result.exit_code == exit_code, result.output
    assert ctl.slept_s == [1.0] * 3
    assert ("was lost before it was drained" in result.stderr) == bool(exit_code)


def test_when_nobody_is_left_to_ask_it_is_said_how_to_go_on(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainReplica"] = [_draining(), grpc.StatusCode.UNAVAILABLE]
    ctl.fake.answers["ListReplicas"] = grpc.StatusCode.UNAVAILABLE
    result = ctl.run("drain", "replica", "replica-a")
    assert result.exit_code == 4
    assert "9 streams were left" in result.stderr
    assert "Ask another replica" in result.stderr


def test_a_drain_need_not_be_waited_for(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainReplica"] = [_draining(), ctl.fake.HOLD]
    result = ctl.run("drain", "replica", "replica-a", "--no-wait")
    assert result.exit_code == 0
    assert "draining" in result.stdout
    assert "The drain goes on" in result.stderr


def test_what_will_not_be_done_by_the_deadline_is_said_first(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainReplica"] = [_draining(needed_s=90.0), _draining(done=True)]
    result = ctl.run("drain", "replica", "replica-a", "--deadline", "30s")
    assert "9 streams need about 1m30s" in result.stderr
    ctl.fake.answers["DrainReplica"] = [_draining(alone=True), _draining(done=True)]
    result = ctl.run("drain", "replica", "replica-a", "--force")
    assert "No other replica takes nodes" in result.stderr
    assert ctl.fake.requests("DrainReplica")[-1].force


def test_a_server_that_stands_still_is_not_waited_for(ctl: Fleetctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP, a suspended machine: it hangs up nowhere. Whoever answers then says how it ended."""
    monkeypatch.setattr(drain_replica, "_SILENCE_S", 0.2)
    ctl.fake.answers["DrainReplica"] = [_draining(ends_within_s=90), ctl.fake.HOLD]
    listed = [admin_pb2.ListReplicasResponse(replicas=[_replica(state)]) for state in ("DRAINING", "LOST")]
    ctl.fake.answers["ListReplicas"] = [grpc.StatusCode.DEADLINE_EXCEEDED, *listed]
    result = ctl.run("drain", "replica", "replica-a")
    assert result.exit_code == 1, result.output
    said = " ".join(result.stderr.split())
    assert "has said nothing for 200ms: looking how the drain of replica-a goes on" in said
    assert "replica-a was lost before it was drained" in said
    assert "end it, or it drains once it goes on" in said


def test_a_server_that_stands_still_before_it_says_anything_is_not_waited_for(
    ctl: Fleetctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_replica, "_SILENCE_S", 0.2)
    ctl.fake.answers["DrainReplica"] = [ctl.fake.HOLD]
    result = ctl.run("drain", "replica", "replica-a")
    assert result.exit_code == 4
    assert "has said nothing for 200ms" in result.stderr
    assert "Whether it heard of the drain: `fleetctl replicas list`" in " ".join(result.stderr.split())
    assert not ctl.slept_s


@pytest.mark.parametrize(("told_s", "waits_s"), [(20.0, 20), (0.0, 60 + 60)], ids=["told", "of an older server"])
def test_a_drain_is_followed_for_as_long_as_it_may_take_and_no_longer(
    ctl: Fleetctl, told_s: float, waits_s: int
) -> None:
    ctl.fake.answers["DrainReplica"] = [_draining(ends_within_s=told_s), grpc.StatusCode.UNAVAILABLE]
    ctl.fake.answers["ListReplicas"] = admin_pb2.ListReplicasResponse(replicas=[_replica("DRAINING", streams=4)])
    result = ctl.run("drain", "replica", "replica-a", "--deadline", "1m")
    assert result.exit_code == 1, result.output
    assert "replica-a is overdue" in result.stderr
    assert "4 streams left" in " ".join(result.stderr.split())
    assert ctl.slept_s == [1.0] * waits_s
