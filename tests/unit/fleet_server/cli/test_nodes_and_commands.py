"""Nodes, run, commands, drains and replicas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2, gateway_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl

SUCCEEDED, FAILED, RUNNING = (
    command_pb2.COMMAND_STATE_SUCCEEDED,
    command_pb2.COMMAND_STATE_FAILED,
    command_pb2.COMMAND_STATE_RUNNING,
)


def node(number: int, **changes: Any) -> admin_pb2.NodeView:
    values: dict[str, Any] = {
        "node_id": f"n_{number}",
        "name": f"press-{number}",
        "state": "ACTIVE",
        "online": True,
        "replica_id": "replica-a",
        "labels": {"line": "2", "a": "1"},
        "rtt_us": 1500,
    }
    return admin_pb2.NodeView(**{**values, **changes})


def command(number: int, state: int = SUCCEEDED, **changes: Any) -> admin_pb2.CommandView:
    values: dict[str, Any] = {
        "command_id": bytes([number]) * 16,
        "issue_id": "is_1",
        "node_id": f"n_{number}",
        "node_name": f"press-{number}",
        "monotonic_seq": 40 + number,
        "action": "host.info",
        "state": state,
        "started_at_ms": NOW_MS,
        "finished_at_ms": NOW_MS + 1200 if state not in (RUNNING,) else 0,
        "output": b'{"os":"linux","empty":""}' if state == SUCCEEDED else b"",
        "key_id": b"\xab" * 16,
    }
    return admin_pb2.CommandView(**{**values, **changes})


def changed(*commands: admin_pb2.CommandView) -> admin_pb2.WatchCommandsResponse:
    return admin_pb2.WatchCommandsResponse(commands=commands)


def issued(count: int, **changes: Any) -> admin_pb2.IssueCommandsResponse:
    return admin_pb2.IssueCommandsResponse(issue_id="is_1", issued_count=count, **changes)


def test_nodes_of_every_page_are_listed(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListNodes"] = lambda request: admin_pb2.ListNodesResponse(
        nodes=[node(int(request.page.token or 0))],
        next_page_token="" if request.page.token == "2" else str(int(request.page.token or 0) + 1),
    )
    assert [one["name"] for one in ctl.json("nodes", "list", "press-*", "rack=4")] == ["press-0", "press-1", "press-2"]
    requests = ctl.fake.requests("ListNodes")
    assert list(requests[0].selector.patterns) == ["press-*", "rack=4"]
    assert {request.page.size for request in requests} == {1000}


def test_the_table_of_nodes(ctl: Fleetctl) -> None:
    offline = node(2, online=False, state="SUSPENDED", last_seen_ms=NOW_MS - 192_000, last_seq=9, last_accepted_seq=7)
    drained = node(3, drain_state="DRAINED", clock_offset_ms=-2000)
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[node(1), offline, drained])
    result = ctl.run("nodes", "list")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1] == ["●", "press-1", "ACTIVE", "-", "-", "1.5ms", "+0ms", "0", "0", "now", "a=1", "line=2"]
    assert rows[2] == ["○", "press-2", "SUSPENDED", "-", "-", "-", "-", "0", "7/9", "3m12s", "a=1", "line=2"]
    assert rows[3][2] == "DRAINED"
    assert result.stderr == "3 nodes, 2 online\n"
    assert "\x1b" not in result.output, "no colours in a pipe"


def test_a_nodes_words_cannot_play_with_the_terminal(ctl: Fleetctl) -> None:
    evil = node(1, name="press\x1b[2J\n", labels={"x": "\u202egnp"})
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[evil])
    result = ctl.run("nodes", "list")
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    assert len(result.stdout.splitlines()) == 2


def test_one_node_is_shown_with_its_actions(ctl: Fleetctl) -> None:
    action = gateway_pb2.ActionDescriptor(action="host.info", protected=True, arguments_schema=b'{"type":"object"}')
    driver = gateway_pb2.DriverDescriptor(name="host", version="1", actions=[action])
    shown = node(1, fingerprint=bytes(20), reported_labels={"os": "linux"})
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=shown, drivers=[driver])
    text = ctl.run("nodes", "show", "press-1").stdout
    for part in ("AAAA-AAAA", "reported.os=linux", "host.info", "protected"):
        assert part in text
    view = ctl.json("nodes", "show", "press-1")
    assert view["drivers"][0]["actions"][0]["arguments_schema"] == {"type": "object"}
    assert view["node"]["bundle_version"] is None


def test_nodes_are_suspended_resumed_and_revoked(ctl: Fleetctl) -> None:
    ctl.fake.answers["SetNodeState"] = lambda request: admin_pb2.SetNodeStateResponse(
        nodes=[node(1, state=request.state)]
    )
    assert "SUSPENDED" in ctl.run("nodes", "suspend", "press-1", "--reason", "water").stdout
    assert "ACTIVE" in ctl.run("nodes", "resume", "press-1").stdout
    assert ctl.run("nodes", "revoke", "press-1", "--reason", "stolen").exit_code == 2, "nobody is there to ask"
    assert "REVOKED" in ctl.run("nodes", "revoke", "press-1", "--reason", "stolen", "--yes").stdout
    assert [(one.state, one.reason) for one in ctl.fake.requests("SetNodeState")] == [
        ("SUSPENDED", "water"),
        ("ACTIVE", ""),
        ("REVOKED", "stolen"),
    ]


def test_labels_are_set_and_removed(ctl: Fleetctl) -> None:
    ctl.fake.answers["LabelNodes"] = admin_pb2.LabelNodesResponse(nodes=[node(1)])
    assert ctl.run("nodes", "label", "press-*", "line=2", "note=a=b-", "old-").exit_code == 0
    request = ctl.fake.requests("LabelNodes")[0]
    assert (dict(request.set), list(request.remove)) == ({"line": "2", "note": "a=b-"}, ["old"])
    assert ctl.run("nodes", "label", "press-*", "neither").exit_code == 2


def test_watching_nodes_writes_json_lines(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchNodes"] = [
        admin_pb2.WatchNodesResponse(nodes=[node(1), node(2)]),
        admin_pb2.WatchNodesResponse(nodes=[node(2, online=False)]),
    ]
    lines = ctl.run("nodes", "watch", "-o", "json").stdout.splitlines()
    assert [(json.loads(line)["name"], json.loads(line)["online"]) for line in lines] == [
        ("press-1", True),
        ("press-2", True),
        ("press-2", False),
    ]


def test_watching_nodes_tells_changes_and_no_mere_signs_of_life(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchNodes"] = [
        admin_pb2.WatchNodesResponse(nodes=[node(1), node(2)]),
        admin_pb2.WatchNodesResponse(nodes=[node(1, last_seen_ms=NOW_MS, rtt_us=99)]),
        admin_pb2.WatchNodesResponse(nodes=[node(2, online=False)]),
    ]
    lines = [line.split()[1:4] for line in ctl.run("nodes", "watch").stdout.splitlines()]
    assert lines == [
        ["NAME", "STATE", "REPLICA"],
        ["●", "press-1", "ACTIVE"],
        ["●", "press-2", "ACTIVE"],
        ["○", "press-2", "ACTIVE"],
    ]


def test_lists_that_are_empty_say_what_to_do(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse()
    ctl.fake.answers["ListCommands"] = admin_pb2.ListCommandsResponse()
    assert "fleetctl join-token create" in ctl.run("nodes", "list").stderr
    assert "fleetctl nodes list" in ctl.run("nodes", "list", "x*").stderr
    assert "No command" in ctl.run("commands", "list").stderr
    assert ctl.run("nodes", "list", "-o", "json").stderr == "", "a program needs no advice"


def test_a_label_is_not_set_and_removed_at_once(ctl: Fleetctl) -> None:
    result = ctl.run("nodes", "label", "press-1", "a=1", "a-")
    assert result.exit_code == 2
    assert ctl.fake.calls == []


def test_run_with_one_word_says_what_is_missing(ctl: Fleetctl) -> None:
    result = ctl.run("run", "press-1")
    assert result.exit_code == 2
    assert "fleetctl run press-1 host.info" in result.stderr


def test_a_refusal_of_all_is_told_whole_with_its_next_step(ctl: Fleetctl) -> None:
    detail = "the arguments are refused at /program: 'rm' is not one of 'date'"
    refused = admin_pb2.RefusedTarget(node_name="press-1", reason="ARGUMENTS_INVALID", detail=detail)
    ctl.fake.answers["IssueCommands"] = issued(0, refused=[refused])
    result = ctl.run("run", "press-1", "exec.run", "--arg", "program=rm")
    assert result.exit_code == 3
    error, hint = result.stderr.splitlines()
    assert error == f"error: nothing was issued to press-1: ARGUMENTS_INVALID: {detail}"
    assert hint == " next: see what the action takes: `fleetctl nodes show press-1`"


def test_the_result_of_one_command_is_shown_whole(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = [changed(command(1, output=b'{"exit_code":0,"stdout":"one\\ntwo\\n"}'))]
    result = ctl.run("run", "press-1", "exec.run")
    assert result.stdout.splitlines()[2:] == ["", "exit_code  0", "stdout", "  one", "  two"]
    assert "It succeeded." in result.stderr


def test_one_failure_is_told_whole(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = [changed(command(1, FAILED, reason="EXIT_CODE", error="it ended with 3"))]
    result = ctl.run("run", "press-1", "exec.run")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: press-1: FAILED: EXIT_CODE: it ended with 3",
        " next: all about it: `fleetctl commands show press-1/41`",
    ]


def test_of_many_long_results_it_is_said_where_they_stand(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(2)
    ctl.fake.answers["WatchCommands"] = [changed(command(1), command(2, output=b'{"stdout":"one\\ntwo"}'))]
    result = ctl.run("run", "*", "exec.run")
    assert len(result.stdout.splitlines()) == 3
    assert "`fleetctl commands show press-2/42`" in result.stderr


def test_a_command_is_named_by_its_node_and_seq(ctl: Fleetctl) -> None:
    def page(request: admin_pb2.ListCommandsRequest) -> admin_pb2.ListCommandsResponse:
        assert request.node == "press-1"
        if request.page.token:
            return admin_pb2.ListCommandsResponse(commands=[command(1, monotonic_seq=7)])
        return admin_pb2.ListCommandsResponse(commands=[command(2, monotonic_seq=9)], next_page_token="next")

    ctl.fake.answers["ListCommands"] = page
    ctl.fake.answers["GetCommand"] = lambda request: admin_pb2.GetCommandResponse(
        command=command(request.command_id[0])
    )
    assert ctl.json("commands", "show", "press-1/7")["command_id"] == "01" * 16
    ctl.fake.answers["CancelCommands"] = admin_pb2.CancelCommandsResponse(commands=[command(1)])
    assert "nothing to call back" in ctl.run("commands", "cancel", "press-1/7", "03" * 16).stderr
    assert list(ctl.fake.requests("CancelCommands")[0].command_ids) == [b"\x01" * 16, b"\x03" * 16]
    missing = ctl.run("commands", "show", "press-1/8")
    assert missing.exit_code == 3
    assert "press-1 has no command 8" in missing.stderr
    assert ctl.run("commands", "show", "press-1/").exit_code == 2


def test_a_reason_that_the_state_tells_is_not_told_twice(ctl: Fleetctl) -> None:
    cancelled = command(1, command_pb2.COMMAND_STATE_CANCELLED, reason="CANCELLED", error="the program was ended")
    ctl.fake.answers["WatchCommands"] = [changed(cancelled)]
    ctl.fake.answers["ListCommands"] = admin_pb2.ListCommandsResponse(commands=[cancelled])
    assert ctl.run("commands", "watch", "is_1").stdout.count("CANCELLED") == 1
    listed = ctl.run("commands", "list").stdout
    assert listed.count("CANCELLED") == 1
    assert "the program was ended" in listed


def test_run_waits_and_shows_every_outcome(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(2)
    ctl.fake.answers["WatchCommands"] = [changed(command(2, RUNNING), command(1)), changed(command(2))]
    result = ctl.run("run", "press-*", "rack=4", "host.info", "--arg", "deep:=true", "--arg", "note=x=y", "--ttl", "90")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1] == ["press-1", "41", "SUCCEEDED", "abababab", "1.2s", "os=linux"]
    assert rows[2][:3] == ["press-2", "42", "SUCCEEDED"]
    assert "All 2 succeeded." in result.stderr
    request = ctl.fake.requests("IssueCommands")[0]
    assert list(request.selector.patterns) == ["press-*", "rack=4"]
    assert (request.commands[0].action, request.ttl_s, request.summary_only) == ("host.info", 90, True)
    assert json.loads(request.commands[0].arguments) == {"deep": True, "note": "x=y"}
    assert len(request.idempotency_key) == 32


def test_run_ends_with_1_when_one_did_not_succeed(ctl: Fleetctl) -> None:
    interrupted = command(3, command_pb2.COMMAND_STATE_INTERRUPTED)
    ctl.fake.answers["IssueCommands"] = issued(3)
    ctl.fake.answers["WatchCommands"] = [
        changed(command(1), command(2, FAILED, reason="TIMEOUT", error="stopped after 30 s"), interrupted)
    ]
    result = ctl.run("run", "*", "host.info")
    assert result.exit_code == 1
    assert "TIMEOUT: stopped after 30 s" in result.stdout
    assert "nobody can know how it ended" in result.stdout
    assert "1 of 3 succeeded" in result.stderr


def test_run_with_some_targets_refused_ends_with_1(ctl: Fleetctl) -> None:
    target = admin_pb2.RefusedTarget(node_name="press-9", reason="SUSPENDED", detail="resume it first")
    ctl.fake.answers["IssueCommands"] = issued(1, refused=[target])
    ctl.fake.answers["WatchCommands"] = [changed(command(1))]
    result = ctl.run("run", "*", "host.info", "-o", "json")
    assert result.exit_code == 1
    view = json.loads(result.stdout)
    assert [one["node_name"] for one in view["refused"]] == ["press-9"]
    assert view["commands"][0]["output"] == {"os": "linux", "empty": ""}
    assert view["commands"][0]["command_id"] == "01" * 16


def test_run_that_issued_nothing_ends_with_3(ctl: Fleetctl) -> None:
    target = admin_pb2.RefusedTarget(node_name="press-9", reason="SUSPENDED", detail="resume it first")
    ctl.fake.answers["IssueCommands"] = [issued(0, refused=[target]), issued(0)]
    refused = ctl.run("run", "press-9", "host.info")
    assert refused.exit_code == 3
    assert "SUSPENDED: resume it first" in refused.stdout
    assert ctl.run("run", "nobody", "host.info").exit_code == 3
    assert ctl.fake.requests("WatchCommands") == []


def test_run_without_waiting_lists_what_was_issued(ctl: Fleetctl) -> None:
    one = admin_pb2.IssuedCommand(command_id=b"\x01" * 16, node_name="press-1", monotonic_seq=7)
    ctl.fake.answers["IssueCommands"] = issued(1, issued=[one], repeated_request=True)
    result = ctl.run("run", "press-1", "host.info", "--no-wait", "--idempotency-key", "k")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["press-1", "7", "01" * 16]
    assert "fleetctl commands watch is_1" in result.stderr
    assert "nothing was issued again" in result.stderr
    request = ctl.fake.requests("IssueCommands")[0]
    assert (request.idempotency_key, request.summary_only) == ("k", False)


def test_a_lost_answer_names_the_key_that_makes_asking_again_safe(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = grpc.StatusCode.UNAVAILABLE
    result = ctl.run("run", "*", "host.info")
    assert result.exit_code == 4
    key = ctl.fake.requests("IssueCommands")[0].idempotency_key
    assert f"--idempotency-key {key}" in result.stderr


def test_run_outlives_a_restart_of_the_server(ctl: Fleetctl) -> None:
    watches = iter(
        [
            [changed(command(1, RUNNING)), grpc.StatusCode.UNAVAILABLE],
            [grpc.StatusCode.UNAVAILABLE],
            [changed(command(1))],
        ]
    )
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = lambda _request: next(watches)
    result = ctl.run("run", "*", "host.info")
    assert result.exit_code == 0, result.output
    assert len(ctl.slept_s) == 2
    assert len(ctl.fake.requests("IssueCommands")) == 1


def test_a_watch_outlives_a_restart_of_the_server_and_tells_nothing_twice(ctl: Fleetctl) -> None:
    openings = iter(
        [
            [changed(command(1, RUNNING), command(2)), grpc.StatusCode.UNAVAILABLE],
            [grpc.StatusCode.UNAVAILABLE],
            [changed(command(1, RUNNING), command(2)), changed(command(1))],
        ]
    )
    ctl.fake.answers["WatchCommands"] = lambda _request: next(openings)
    result = ctl.run("commands", "watch", "is_1")
    assert result.exit_code == 0, result.output
    assert [line.split()[1:5:3] for line in result.stdout.splitlines()[1:]] == [
        ["press-1", "RUNNING"],
        ["press-2", "SUCCEEDED"],
        ["press-1", "SUCCEEDED"],
    ]
    assert ctl.slept_s == [0.5, 1.0]
    assert "looking again" in result.stderr


def test_a_watch_that_never_began_ends(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchNodes"] = [grpc.StatusCode.UNAVAILABLE]
    assert ctl.run("nodes", "watch").exit_code == 4
    assert ctl.slept_s == []


def test_a_drain_whose_server_goes_away_goes_on(ctl: Fleetctl) -> None:
    ctl.fake.answers["DrainNodes"] = [
        admin_pb2.DrainNodesResponse(nodes=[node(1, drain_state="DRAINING")], nodes_left=1),
        grpc.StatusCode.UNAVAILABLE,
    ]
    result = ctl.run("drain", "node", "press-1")
    assert result.exit_code == 4
    assert "the drain goes on: `fleetctl nodes list press-1`" in result.stderr
    assert len(ctl.fake.requests("DrainNodes")) == 1, "it may have been ended meanwhile: it is not asked for again"


def test_run_gives_a_server_up_that_stays_away(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = [Refusal(Reason.DRAINING, "going")]
    result = ctl.run("run", "*", "host.info")
    assert result.exit_code == 4
    assert ctl.slept_s == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert "fleetctl commands watch is_1" in result.stderr


def test_run_waits_no_longer_than_told(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = [changed(command(1, RUNNING)), ctl.fake.HOLD]
    result = ctl.run("run", "*", "host.info", "--timeout", "1s")
    assert result.exit_code == 1
    assert "0 of 1 succeeded, 1 not final yet" in result.stderr
    assert "RUNNING" in result.stdout
    assert ctl.fake.left.wait(10), "the watch is cancelled"


@pytest.mark.parametrize(
    "args",
    [
        ("--arg", "novalue"),
        ("--arg", "a:={"),
        ("--arg", "a=1", "--arg", "a=2"),
        ("--arg", ":=1"),
        ("--args-json", "[1]"),
        ("--args-json", "{"),
        ("--args-json", "{}", "--arg", "a=1"),
        ("--args-json", '{"a":"' + "x" * 65_536 + '"}'),
        ("--ttl", "0"),
        ("--ttl", "5 minutes"),
        ("--ttl", "99999999d"),
    ],
)
def test_wrong_usage_issues_nothing(ctl: Fleetctl, args: tuple[str, ...]) -> None:
    result = ctl.run("run", "*", "host.info", *args)
    assert result.exit_code == 2, result.output
    assert ctl.fake.calls == []


def test_arguments_travel_as_written(ctl: Fleetctl, tmp_path: Path) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    file = tmp_path / "args.json"
    file.write_text('{ "n" : 1.50 }')
    run = ("run", "*", "host.info", "--no-wait")
    assert ctl.run(*run, "--args-file", str(file)).exit_code == 0
    assert ctl.run(*run, "--args-file", "-", stdin='{"stdin":1}').exit_code == 0
    assert ctl.run(*run, "--args-json", '{"b": 2}').exit_code == 0
    sent = [request.commands[0].arguments for request in ctl.fake.requests("IssueCommands")]
    assert sent == [b'{ "n" : 1.50 }', b'{"stdin":1}', b'{"b": 2}']


def test_commands_are_listed_up_to_the_limit(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListCommands"] = lambda request: admin_pb2.ListCommandsResponse(
        commands=[command(1)] * min(request.page.size, 1000), next_page_token=request.page.token + "x"
    )
    assert len(ctl.json("commands", "list", "--limit", "1500", "--node", "press-1", "--open")) == 1500
    requests = ctl.fake.requests("ListCommands")
    assert [request.page.size for request in requests] == [1000, 500]
    assert (requests[0].node, requests[0].open_only) == ("press-1", True)


def test_a_cancel_that_is_not_answered_is_never_called_cancelled(ctl: Fleetctl) -> None:
    ctl.fake.answers["CancelCommands"] = admin_pb2.CancelCommandsResponse(
        commands=[command(1, RUNNING, cancel_requested=True)]
    )
    text = ctl.run("commands", "cancel", "--issue", "is_1").stdout
    assert "CANCEL_REQUESTED" in text
    assert "CANCELLED" not in text
    assert ctl.run("commands", "cancel").exit_code == 2
    assert ctl.run("commands", "cancel", "01" * 16, "--issue", "is_1").exit_code == 2
    assert ctl.run("commands", "cancel", "xyz").exit_code == 2


def test_a_command_is_shown_whole(ctl: Fleetctl) -> None:
    shown = command(1, arguments=b'{"a":1}', output=b'{"text":"a\\u001b[31mb"}')
    ctl.fake.answers["GetCommand"] = admin_pb2.GetCommandResponse(command=shown)
    text = ctl.run("commands", "show", "01" * 16).stdout
    assert '{"a":1}' in text
    assert "\x1b" not in text
    view = ctl.json("commands", "show", "01" * 16)
    assert (view["arguments"], view["key_id"], view["sent_at"]) == ({"a": 1}, "ab" * 16, None)


def test_watching_an_issue_ends_with_it(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchCommands"] = [changed(command(1, RUNNING)), changed(command(1))]
    lines = ctl.run("commands", "watch", "is_1", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["RUNNING", "SUCCEEDED"]
    assert ctl.fake.requests("WatchCommands")[0].until_final
    ctl.run("commands", "watch")
    assert not ctl.fake.requests("WatchCommands")[1].until_final


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
