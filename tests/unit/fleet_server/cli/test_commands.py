"""fleetctl commands: found, shown, watched, called back."""

from __future__ import annotations

import json

import grpc

from fleet.v1 import admin_pb2, command_pb2
from tests.unit.fleet_server.cli.conftest import Fleetctl
from tests.unit.fleet_server.cli.made import RUNNING, changed, command


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


def test_what_was_never_sent_is_cancelled_at_once_and_called_back_all_the_same(ctl: Fleetctl) -> None:
    ended = command(1, command_pb2.COMMAND_STATE_CANCELLED, reason="CANCELLED_BEFORE_SENDING")
    ctl.fake.answers["CancelCommands"] = admin_pb2.CancelCommandsResponse(commands=[ended])
    result = ctl.run("commands", "cancel", "01" * 16)
    assert "CANCELLED_BEFORE_SENDING" in result.stdout
    assert "nothing to call back" not in result.stderr


def test_a_reason_that_the_state_tells_is_not_told_twice(ctl: Fleetctl) -> None:
    cancelled = command(1, command_pb2.COMMAND_STATE_CANCELLED, reason="CANCELLED", error="the program was ended")
    ctl.fake.answers["WatchCommands"] = [changed(cancelled)]
    ctl.fake.answers["ListCommands"] = admin_pb2.ListCommandsResponse(commands=[cancelled])
    assert ctl.run("commands", "watch", "is_1").stdout.count("CANCELLED") == 1
    listed = ctl.run("commands", "list").stdout
    assert listed.count("CANCELLED") == 1
    assert "the program was ended" in listed


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
    assert "Ctrl-C ends" in ctl.run("commands", "watch").stderr, "nothing may happen for hours"
    assert not ctl.fake.requests("WatchCommands")[1].until_final


def test_what_was_changed_around_the_server_is_marked(ctl: Fleetctl) -> None:
    forged = command(1, unverified=True)
    ctl.fake.answers["ListCommands"] = admin_pb2.ListCommandsResponse(commands=[forged, command(2)])
    listed = ctl.run("commands", "list").stdout
    assert listed.count("host.info (not verified)") == 1
    ctl.fake.answers["GetCommand"] = admin_pb2.GetCommandResponse(command=forged)
    assert "believe none of it" in ctl.run("commands", "show", "01" * 16).stdout
    assert ctl.json("commands", "show", "01" * 16)["unverified"] is True
