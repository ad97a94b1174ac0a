"""fleetctl drain wave: batches, the budget, what interrupts it, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from fleet.v1 import admin_pb2, command_pb2
from fleet_server.cli import wave_rules
from tests.unit.fleet_server.cli.conftest import Fleetctl
from tests.unit.fleet_server.cli.made import RUNNING, command, node


class SmallFleet:
    """Nodes that drain at once, but for those of which a test says otherwise."""

    def __init__(self, ctl: Fleetctl, count: int) -> None:
        self.nodes = {f"press-{number}": node(number) for number in range(1, count + 1)}
        self.stuck: set[str] = set()
        self.lost: set[str] = set()
        self.asked: list[list[str]] = []
        self.resumed: list[list[str]] = []
        self.interrupt_at = 0
        ctl.fake.answers |= {"ListNodes": self.list, "DrainNodes": self.drain, "ResumeNodes": self.resume}

    def _chosen(self, patterns: Sequence[str]) -> list[admin_pb2.NodeView]:
        return [each for name, each in sorted(self.nodes.items()) if "*" in patterns or name in patterns]

    def list(self, request: admin_pb2.ListNodesRequest) -> Any:
        return admin_pb2.ListNodesResponse(nodes=self._chosen(request.selector.patterns))

    def drain(self, request: admin_pb2.DrainNodesRequest) -> Any:
        chosen = self._chosen(request.selector.patterns)
        self.asked.append([each.name for each in chosen])
        if len(self.asked) == self.interrupt_at:
            return [grpc.StatusCode.PERMISSION_DENIED]
        for each in chosen:
            each.drain_state = "DRAINING" if each.name in self.stuck | self.lost else "DRAINED"
            each.online = each.name not in self.lost
        return [admin_pb2.DrainNodesResponse(nodes=chosen, nodes_left=len(chosen))]

    def resume(self, request: admin_pb2.ResumeNodesRequest) -> Any:
        chosen = self._chosen(request.selector.patterns)
        self.resumed.append([each.name for each in chosen])
        for each in chosen:
            each.drain_state = "NONE"
        return admin_pb2.ResumeNodesResponse(nodes=chosen)


@pytest.mark.parametrize(
    ("text", "total", "size"), [("10", 300, 10), ("10%", 300, 30), ("10%", 3, 1), ("100%", 7, 7), ("1%", 0, 1)]
)
def test_a_batch_is_a_number_or_a_share(text: str, total: int, size: int) -> None:
    assert wave_rules.batch_size(text, total) == size


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-1", "ten", "1.5"])
def test_what_is_no_batch_is_refused(ctl: Fleetctl, text: str) -> None:
    result = ctl.run("drain", "wave", "*", "--batch", text)
    assert result.exit_code == 2
    assert "no batch" in result.stderr


def test_nodes_are_drained_batch_after_batch_by_name(ctl: Fleetctl) -> None:
    fleet = SmallFleet(ctl, 5)
    fleet.nodes["press-3"].online = False
    fleet.nodes["press-4"].drain_state = "DRAINED"
    result = ctl.run("drain", "wave", "*", "--batch", "2", "--deadline", "5m", "--reason", "kernel", "-o", "json")
    assert result.exit_code == 0, result.output
    assert fleet.asked == [["press-1", "press-2"], ["press-5"]]
    assert json.loads(result.stdout) == {
        "drained": ["press-1", "press-2", "press-5"],
        "failed": {},
        "left": 0,
        "left_out": {"press-3": "offline", "press-4": "drained already"},
        "stopped": False,
    }
    assert "2 nodes left out: 1 drained already, 1 offline" in result.stderr
    requests = ctl.fake.requests("DrainNodes")
    assert {(request.deadline_s, request.reason) for request in requests} == {(300, "kernel")}


def test_a_dry_run_shows_the_batches_and_drains_nothing(ctl: Fleetctl) -> None:
    fleet = SmallFleet(ctl, 3)
    result = ctl.run("drain", "wave", "*", "--batch", "2", "--dry-run")
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["1", "2", "press-1", "press-2"],
        ["2", "1", "press-3"],
    ]
    assert not fleet.asked


def test_more_failures_than_the_budget_stop_the_wave(ctl: Fleetctl) -> None:
    fleet = SmallFleet(ctl, 6)
    fleet.stuck, fleet.lost = {"press-1"}, {"press-4"}
    result = ctl.run("drain", "wave", "*", "--batch", "2", "--budget", "1", "--deadline", "5s", "-o", "json")
    assert result.exit_code == 1
    assert fleet.asked == [["press-1", "press-2"], ["press-3", "press-4"]]
    said = json.loads(result.stdout)
    assert said["failed"] == {"press-1": "not drained by the deadline", "press-4": "was lost meanwhile"}
    assert (said["drained"], said["left"], said["stopped"]) == (["press-2", "press-3"], 2, True)
    assert "2 failures, a budget of 1" in result.stderr
    assert "left so: press-4" in result.stderr


def test_a_wave_that_was_stopped_goes_on_where_it_was(ctl: Fleetctl) -> None:
    fleet = SmallFleet(ctl, 4)
    fleet.interrupt_at = 2
    first = ctl.run("drain", "wave", "*", "--batch", "2")
    assert first.exit_code == 3
    assert fleet.asked.pop() == ["press-3", "press-4"]
    fleet.interrupt_at = 0
    again = ctl.run("drain", "wave", "*", "--batch", "2")
    assert again.exit_code == 0
    assert fleet.asked == [["press-1", "press-2"], ["press-3", "press-4"]]


def test_ctrl_c_says_what_is_left_so_and_how_to_go_on(ctl: Fleetctl, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = SmallFleet(ctl, 4)
    fleet.stuck = {"press-3"}

    class Stop(list[float]):
        def append(self, seconds: float) -> None:
            raise KeyboardInterrupt

    ctl.slept_s = Stop()
    result = ctl.run("drain", "wave", "*", "--batch", "2", "--then", "resume")
    assert result.exit_code in (1, 130)
    assert "left so: press-3 press-4" in result.stderr
    assert "--then resume --after press-2" in " ".join(result.stderr.split())
    assert fleet.resumed == [["press-1", "press-2"]]
    fleet.stuck, ctl.slept_s = set(), []
    result = ctl.run("drain", "wave", "*", "--batch", "2", "--then", "resume", "--after", "press-2", "--pause", "1m")
    assert result.exit_code == 0
    assert fleet.asked[-1] == fleet.resumed[-1] == ["press-3"], "the other one was drained: it is somebody's now"
    assert 60.0 in ctl.slept_s


def test_a_command_that_the_drain_cut_short_is_a_failure(ctl: Fleetctl) -> None:
    fleet = SmallFleet(ctl, 1)
    fleet.nodes["press-1"].open_commands = 3
    waits, runs = command(1, command_pb2.COMMAND_STATE_QUEUED), command(2, RUNNING)
    ctl.fake.answers["ListCommands"] = admin_pb2.ListCommandsResponse(commands=[waits, runs])
    cut = command(2, command_pb2.COMMAND_STATE_FAILED, reason="DRAIN_DEADLINE")
    ctl.fake.answers["GetCommand"] = admin_pb2.GetCommandResponse(command=cut)
    result = ctl.run("drain", "wave", "*")
    assert result.exit_code == 1
    assert "press-1: the drain cut 1 running command short" in result.stderr
    assert [request.command_id for request in ctl.fake.requests("GetCommand")] == [runs.command_id]


def test_a_replica_that_goes_away_meanwhile_does_not_end_the_wave(ctl: Fleetctl) -> None:
    fleet = SmallFleet(ctl, 2)
    answers = iter([fleet.list, None, None])

    def sometimes(request: admin_pb2.ListNodesRequest) -> Any:
        answer = next(answers, fleet.list)
        return grpc.StatusCode.UNAVAILABLE if answer is None else answer(request)

    ctl.fake.answers["ListNodes"] = sometimes
    result = ctl.run("drain", "wave", "*", "--batch", "100%")
    assert result.exit_code == 0, result.output
    assert "asking again for 120 s" in result.stderr


def test_a_replica_that_stands_still_is_turned_away_from_and_waited_for_no_longer_than_one_that_is_away(
    ctl: Fleetctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = SmallFleet(ctl, 1)
    opened: list[str] = []
    channel = grpc.secure_channel

    def secure_channel(server: str, *how: Any, **options: Any) -> grpc.Channel:
        opened.append(server)
        return channel(server, *how, **options)

    monkeypatch.setattr(grpc, "secure_channel", secure_channel)
    drain = iter([grpc.StatusCode.DEADLINE_EXCEEDED])
    ctl.fake.answers["DrainNodes"] = lambda request: next(drain, None) or fleet.drain(request)
    assert ctl.run("drain", "wave", "*").exit_code == 0
    assert len(opened) == 2
    ctl.slept_s.clear()
    ctl.fake.answers["DrainNodes"] = grpc.StatusCode.DEADLINE_EXCEEDED
    fleet.nodes["press-1"].drain_state = "NONE"
    assert ctl.run("drain", "wave", "*").exit_code == 4
    assert len(ctl.slept_s) == 4, "120 s, of which each attempt took 30"


def test_a_wave_over_nobody_says_so(ctl: Fleetctl) -> None:
    SmallFleet(ctl, 0)
    assert "no node matches" in ctl.run("drain", "wave", "*").stderr
    assert ctl.run("drain", "wave").exit_code == 2


class SmallServer:
    """Replicas that end when they are drained, and are started again a moment later."""

    def __init__(self, ctl: Fleetctl, names: Sequence[str]) -> None:
        self.rows = {name: admin_pb2.ReplicaView(replica_id=name, state="READY", started_at_ms=1) for name in names}
        self.stays_away: set[str] = set()
        self.gets_lost: set[str] = set()
        self.passed_on_by: list[grpc.StatusCode] = []  # what becomes of whoever is asked, before it passes it on
        self.asked: list[str] = []
        self._back_in: dict[str, int] = {}
        ctl.fake.answers |= {"ListReplicas": self.list, "DrainReplica": self.drain}

    def list(self, _: admin_pb2.ListReplicasRequest) -> Any:
        for name in [*self._back_in]:
            self._back_in[name] -= 1
            if not self._back_in[name]:
                del self._back_in[name]
                self.rows[name].state = "READY"
                self.rows[name].started_at_ms += 1
        return admin_pb2.ListReplicasResponse(replicas=self.rows.values())

    def drain(self, request: admin_pb2.DrainReplicaRequest) -> Any:
        row = self.rows[request.replica_id]
        assert [each.state for each in self.rows.values()] == ["READY"] * len(self.rows), "one at a time"
        self.asked.append(row.replica_id)
        if self.passed_on_by:
            return self.passed_on_by.pop(0)
        row.state = "LOST" if row.replica_id in self.gets_lost else "STOPPED"
        if row.replica_id not in self.stays_away:
            self._back_in[row.replica_id] = 3
        return [admin_pb2.DrainReplicaResponse(replica=row, streams_total=5, done=True)]


def test_replicas_are_upgraded_one_after_the_other(ctl: Fleetctl) -> None:
    server = SmallServer(ctl, ["r-a", "r-b", "r-c"])
    result = ctl.run("drain", "wave", "--replicas", "-o", "json")
    assert result.exit_code == 0, result.output
    assert server.asked == ["r-a", "r-b", "r-c"]
    assert json.loads(result.stdout) == {"drained": ["r-a", "r-b", "r-c"], "failed": {}, "left": []}


def test_a_replica_that_does_not_come_back_stops_the_wave(ctl: Fleetctl) -> None:
    server = SmallServer(ctl, ["r-a", "r-b", "r-c"])
    server.stays_away = {"r-b"}
    result = ctl.run("drain", "wave", "--replicas", "--return-within", "10s")
    assert result.exit_code == 1
    assert server.asked == ["r-a", "r-b"]
    assert "none is READY in its place after 10s" in " ".join(result.stderr.split())
    assert "drain wave --replicas --return-within 10s --after r-a`" in " ".join(result.stderr.split())
    server.rows["r-b"].state = "READY"
    server.stays_away = set()
    assert ctl.run("drain", "wave", "--replicas", "--after", "r-a").exit_code == 0
    assert server.asked == ["r-a", "r-b", "r-b", "r-c"]


def test_how_to_go_on_names_nobody_whom_the_wave_did_not(ctl: Fleetctl) -> None:
    """Whoever copies it drains the rest of what was asked for, and no more."""
    fleet = SmallFleet(ctl, 4)
    fleet.stuck = {"press-3"}
    result = ctl.run("drain", "wave", "*", "--after", "press-2", "--batch", "1", "--deadline", "5s")
    assert "drain wave '*' --batch 1 --deadline 5s --after press-2`" in " ".join(result.stderr.split())
    server = SmallServer(ctl, ["r-a", "r-b", "r-c", "r-d"])
    server.stays_away = {"r-b"}
    result = ctl.run("drain", "wave", "--replicas", "r-c", "r-b", "--deadline", "90s", "--return-within", "10s")
    assert server.asked == ["r-b"]
    said = "drain wave r-c r-b --replicas --deadline 90s --return-within 10s`"
    assert said in " ".join(result.stderr.split())


def test_a_replica_that_is_lost_stops_the_wave(ctl: Fleetctl) -> None:
    server = SmallServer(ctl, ["r-a", "r-b"])
    server.gets_lost = {"r-a"}
    result = ctl.run("drain", "wave", "--replicas")
    assert result.exit_code == 1
    assert server.asked == ["r-a"]
    assert "r-a was lost before it was drained" in result.stderr


def test_a_replica_that_nobody_asked_yet_is_asked_again(ctl: Fleetctl) -> None:
    """Who was to pass it on had gone, or did not answer: READY as before, it was not asked."""
    server = SmallServer(ctl, ["r-a", "r-b"])
    server.passed_on_by = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
    result = ctl.run("drain", "wave", "--replicas", "-o", "json")
    assert result.exit_code == 0, result.output
    assert server.asked == ["r-a", "r-a", "r-a", "r-b"]
    assert json.loads(result.stdout)["drained"] == ["r-a", "r-b"]


def test_a_replica_that_stood_still_when_it_was_asked_is_lost_whoever_joined_meanwhile(ctl: Fleetctl) -> None:
    server = SmallServer(ctl, ["r-a", "r-b"])

    def stands_still(_: admin_pb2.DrainReplicaRequest) -> grpc.StatusCode:
        server.rows["r-a"].state = "LOST"
        server.rows["r-c"] = admin_pb2.ReplicaView(replica_id="r-c", state="READY", started_at_ms=1)
        return grpc.StatusCode.DEADLINE_EXCEEDED

    ctl.fake.answers["DrainReplica"] = stands_still
    result = ctl.run("drain", "wave", "--replicas", "-o", "json")
    assert result.exit_code == 1, result.output
    assert "r-a was lost before it was drained" in result.stderr
    said = json.loads(result.stdout)
    assert (said["drained"], list(said["failed"]), said["left"]) == ([], ["r-a"], ["r-b"])


def test_when_nobody_answers_after_a_drain_the_wave_ends_within_the_time_for_a_return(ctl: Fleetctl) -> None:
    server = SmallServer(ctl, ["r-a", "r-b"])

    def drain(request: admin_pb2.DrainReplicaRequest) -> Any:
        ctl.fake.answers["ListReplicas"] = grpc.StatusCode.UNAVAILABLE
        return server.drain(request)

    ctl.fake.answers["DrainReplica"] = drain
    result = ctl.run("drain", "wave", "--replicas", "--return-within", "10s", "-o", "json")
    assert result.exit_code == 4, result.output
    assert len(ctl.slept_s) == 10
    assert list(json.loads(result.stdout)["failed"]) == ["r-a"]


def test_a_replica_that_cannot_be_asked_fails_within_the_time_for_its_return(ctl: Fleetctl) -> None:
    server = SmallServer(ctl, ["r-a", "r-b"])
    server.passed_on_by = [grpc.StatusCode.UNAVAILABLE] * 99
    result = ctl.run("drain", "wave", "--replicas", "--return-within", "10s", "-o", "json")
    assert result.exit_code == 4
    assert len(ctl.slept_s) == 10
    said = json.loads(result.stdout)
    assert (list(said["failed"]), said["left"]) == (["r-a"], ["r-b"])


@pytest.mark.parametrize("wrong", [["--budget", "1"], ["--then", "resume"], ["--reason", "because"]])
def test_what_is_for_nodes_is_refused_for_replicas(ctl: Fleetctl, wrong: list[str]) -> None:
    assert ctl.run("drain", "wave", "--replicas", *wrong).exit_code == 2
