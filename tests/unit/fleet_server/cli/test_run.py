"""fleetctl run: what is issued, how it is waited for, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2
from tests.unit.fleet_server.cli.conftest import Fleetctl
from tests.unit.fleet_server.cli.made import FAILED, RUNNING, changed, command, issued


def test_run_with_one_word_says_what_is_missing(ctl: Fleetctl) -> None:
    result = ctl.run("run", "press-1")
    assert result.exit_code == 2
    assert "fleetctl run press-1 host.info" in result.stderr


@pytest.mark.parametrize(
    "words",
    [["--wait", "10s", "press-1", "host.info"], ["press-1", "host.info", "--wait", "10s"], ["x", "y", "--wait=10s"]],
)
def test_a_time_after_wait_is_no_target_and_no_action(ctl: Fleetctl, words: list[str]) -> None:
    result = ctl.run("run", *words)
    assert result.exit_code == 2
    assert "--wait takes no time: to wait at most that long, write --timeout 10s" in result.stderr
    assert ctl.fake.requests("IssueCommands") == []


def test_a_target_after_wait_is_a_target(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = [changed(command(1))]
    assert ctl.run("run", "--wait", "press-1", "host.info").exit_code == 0


def test_a_refusal_of_all_is_told_whole_with_its_next_step(ctl: Fleetctl) -> None:
    detail = "the arguments are refused at /program: 'rm' is not one of 'date'"
    refused = admin_pb2.RefusedTarget(node_name="press-1", reason="ARGUMENTS_INVALID", detail=detail)
    ctl.fake.answers["IssueCommands"] = issued(0, refused=[refused])
    result = ctl.run("run", "press-1", "exec.run", "--arg", "program=rm")
    assert result.exit_code == 3
    error, hint = result.stderr.splitlines()
    assert error == f"error: nothing was issued to press-1: ARGUMENTS_INVALID: {detail}"
    assert hint == " next: see what the action takes: `fleetctl nodes show press-1`"


@pytest.mark.parametrize(("given", "written"), [("5", "`--arg latency_ms:=5`"), ("fast", "`--arg latency_ms:=JSON`")])
def test_text_where_a_number_belongs_is_told_how_a_number_is_written(ctl: Fleetctl, given: str, written: str) -> None:
    detail = f'the arguments of simulated.work are refused at /latency_ms: "{given}" is not of type "number"'
    refused = admin_pb2.RefusedTarget(node_name="press-1", reason="ARGUMENTS_INVALID", detail=detail)
    ctl.fake.answers["IssueCommands"] = issued(0, refused=[refused])
    hint = ctl.run("run", "press-1", "simulated.work", "--arg", f"latency_ms={given}").stderr.splitlines()[-1]
    assert hint == f" next: other than text is written so: {written}; all it takes: `fleetctl nodes show press-1`"


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


@pytest.mark.parametrize(("option", "holds"), [("--wait", "commands"), ("--no-wait", "issued")])
def test_json_has_one_shape_whether_or_not_something_was_issued(ctl: Fleetctl, option: str, holds: str) -> None:
    target = admin_pb2.RefusedTarget(node_name="press-9", reason="SUSPENDED", detail="resume it first")
    one = admin_pb2.IssuedCommand(command_id=b"\x01" * 16, node_name="press-1", monotonic_seq=7)
    ctl.fake.answers["IssueCommands"] = [issued(0, refused=[target]), issued(1, issued=[one])]
    ctl.fake.answers["WatchCommands"] = [changed(command(1))]
    run = ("run", "*", "host.info", option, "-o", "json")
    nothing, something = (json.loads(ctl.run(*run).stdout) for _ in range(2))
    assert nothing.keys() == something.keys()
    assert (nothing[holds], len(something[holds])) == ([], 1)


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
    assert "says so in `fleetctl audit tail`" in result.stderr
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
