"""fleetctl nodes: lists, one node whole, changes as they come."""

from __future__ import annotations

import json

import pytest

from fleet.v1 import admin_pb2, gateway_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.made import node


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


@pytest.mark.parametrize("state", ["SUSPENDED", "REVOKED", "QUARANTINED"])
def test_a_node_that_is_kept_out_is_not_shown_as_online_while_its_stream_closes(ctl: Fleetctl, state: str) -> None:
    closing = node(1, state=state)
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[closing, node(2)])
    ctl.fake.answers["WatchNodes"] = [admin_pb2.WatchNodesResponse(nodes=[closing])]
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=closing)
    listed = ctl.run("nodes", "list")
    assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
        ["◐", "press-1", state],
        ["●", "press-2", "ACTIVE"],
    ]
    assert listed.stderr == "2 nodes, 1 online\n"
    assert "◐" in ctl.run("nodes", "watch").stdout
    assert "about to be closed" in ctl.run("nodes", "show", "press-1").stdout
    assert ctl.json("nodes", "list")[0]["online"] is True, "JSON tells what the stream is, and the state beside it"


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


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), (True, False, False, 3600)),
        (("--keys", "all", "--overlap", "0"), (True, True, True, 0)),
        (("--keys", "identity", "--keys", "sealing", "--overlap", "5m"), (False, True, True, 300)),
    ],
)
def test_rotating(ctl: Fleetctl, options: tuple[str, ...], asked: tuple[bool, bool, bool, int]) -> None:
    ctl.fake.answers["RotateNodes"] = admin_pb2.RotateNodesResponse(nodes=[node(1, rotating=["api"])])
    result = ctl.run("nodes", "rotate", "press-1", *options)
    assert result.exit_code == 0
    assert "Ordered for 1 node" in result.stderr
    (request,) = ctl.fake.requests("RotateNodes")
    assert (request.api_key, request.identity, request.sealing, request.overlap_s) == asked
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=node(1, rotating=["api", "identity"]))
    assert "api, identity" in ctl.run("nodes", "show", "press-1").stdout


def test_rotating_what_some_refuse(ctl: Fleetctl) -> None:
    target = admin_pb2.RefusedTarget(node_name="press-2", reason="CONFLICT", detail="a third one there is never")
    ctl.fake.answers["RotateNodes"] = admin_pb2.RotateNodesResponse(nodes=[node(1)], refused=[target])
    result = ctl.run("nodes", "rotate", "*")
    assert result.exit_code == 1
    assert "press-2: a third one there is never" in result.stderr
    assert json.loads(ctl.run("nodes", "rotate", "*", "-o", "json").stdout)["refused"][0]["node_name"] == "press-2"


OPEN = admin_pb2.ChecklistItem(item="host-secrets", detail="what the machine could read")
DONE = admin_pb2.ChecklistItem(item="api-keys", detail="2 ended", done_at_ms=NOW_MS, done_by="server")


def test_a_checklist_shows_what_is_open_and_how_to_tick_it(ctl: Fleetctl) -> None:
    revoked = node(1, state="REVOKED", checklist_open=1)
    ctl.fake.answers["GetChecklist"] = admin_pb2.GetChecklistResponse(node=revoked, items=[DONE, OPEN])
    result = ctl.run("nodes", "checklist", "press-1")
    assert "host-secrets" in result.stdout
    assert "fleetctl nodes checklist press-1 --done host-secrets --note TEXT" in result.stderr

    ticked = admin_pb2.TickChecklistResponse(node=node(1), items=[DONE])
    ctl.fake.answers["TickChecklist"] = ticked
    result = ctl.run("nodes", "checklist", "press-1", "--done", "host-secrets", "--note", "changed")
    assert "Nothing is left to do" in result.stderr
    (request,) = ctl.fake.requests("TickChecklist")
    assert (request.item, request.note) == ("host-secrets", "changed")
    assert ctl.json("nodes", "checklist", "press-1")["items"][1]["item"] == "host-secrets"
    assert ctl.run("nodes", "checklist", "press-1", "--done", "host-secrets").exit_code == 2


def test_lists_remind_of_what_is_left_to_do(ctl: Fleetctl) -> None:
    revoked = node(1, state="REVOKED", checklist_open=2)
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[revoked, node(2)])
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=revoked)
    ctl.fake.answers["SetNodeState"] = admin_pb2.SetNodeStateResponse(nodes=[revoked])
    reminder = "fleetctl nodes checklist press-1"
    assert reminder in ctl.run("nodes", "list").stderr
    assert reminder in ctl.run("nodes", "show", "press-1").stdout
    assert reminder in ctl.run("nodes", "revoke", "press-1", "--reason", "stolen", "--yes").stderr


def test_while_any_machine_is_taken_for_a_node_it_is_shown(ctl: Fleetctl) -> None:
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=node(1))
    assert "any machine" not in ctl.run("nodes", "show", "press-1").stdout
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=node(1), any_machine_until_ms=NOW_MS)
    assert "with its keys is taken for it, once, until 20" in ctl.run("nodes", "show", "press-1").stdout
