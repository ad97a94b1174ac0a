"""Telemetry, audit and keys."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import grpc
import pytest

from fleet import audit_chain
from fleet.audit_chain import CheckpointMark
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.node_audit import Begun, BegunBecause
from fleet.v1 import admin_pb2, session_pb2, telemetry_pb2, trust_pb2
from fleet_server.cli.chart import quantity, sparkline
from tests.unit.fleet_server.cli.conftest import AUTHORITY, NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.made import node


def entries(
    count: int, writer: str = "replica-a", kind: str = "command.issued", **changes: Any
) -> list[admin_pb2.AuditEntry]:
    made = []
    previous = audit_chain.FIRST_PREVIOUS_HASH
    for number in range(1, count + 1):
        fields: dict[str, Any] = {
            "writer": writer,
            "number": number,
            "at_ms": NOW_MS + number,
            "kind": kind,
            "actor": "ada",
            "subject": "press-1",
            "detail": b'{"n":%d}' % number,
            **changes,
        }
        digest = audit_chain.row_hash(previous_hash=previous, **fields)
        made.append(admin_pb2.AuditEntry(position=number, previous_hash=previous, hash=digest, **fields))
        previous = digest
    return made


def checkpoint(
    number: int,
    *heads: admin_pb2.AuditEntry,
    previous: trust_pb2.Signed | None = None,
    signer: Signer = AUTHORITY,
) -> trust_pb2.Signed:
    statement = trust_pb2.AuditCheckpointStatement(
        cluster_id="cluster-1",
        number=number,
        previous_sha256=hashlib.sha256(previous.statement).digest() if previous else b"",
        heads=[trust_pb2.AuditHead(writer=head.writer, number=head.number, hash=head.hash) for head in heads],
        issued_at_ms=NOW_MS,
    )
    return signer.sign(Domain.AUDIT_CHECKPOINT, statement.SerializeToString())


def exported(rows: list[admin_pb2.AuditEntry], *checkpoints: trust_pb2.Signed) -> admin_pb2.ExportAuditResponse:
    return admin_pb2.ExportAuditResponse(entries=rows, checkpoints=checkpoints)


def test_a_genuine_audit_verifies_and_is_remembered(ctl: Fleetctl) -> None:
    rows = entries(5)
    first = checkpoint(1, rows[1])
    second = checkpoint(2, rows[2], previous=first)
    third = checkpoint(3, rows[3], previous=second)
    read = [exported(rows[:2], first), exported(rows[2:4], second)]
    news = [exported(rows[2:], second), exported([], third)]
    ctl.fake.answers["ExportAudit"] = lambda request: news if request.follow else read
    result = ctl.run("audit", "verify")
    assert result.exit_code == 0, result.output
    assert "nothing was changed" in result.stdout
    assert "1 rows after the newest checkpoint" in result.stdout
    remembered = ctl.profile.load().contexts["default"].checkpoint
    assert remembered == CheckpointMark(3, hashlib.sha256(third.statement).digest())
    ctl.fake.answers["ExportAudit"] = [exported(rows[:4], first, second, third)]
    view = ctl.json("audit", "verify")
    assert (view["verified"], view["rows"], view["newest_checkpoint"], view["uncovered_rows"]) == (True, 4, 3, 0)


def test_a_later_chain_of_a_node_is_named_with_what_it_continues(ctl: Fleetctl) -> None:
    opened = entries(1, kind="node.audit_chain_opened", subject="node:n-1", detail=b'{"chain":1,"told":0}')
    first = entries(3, "node:n-1", "drain.ended")
    begun = Begun(0, 1, first[0].hash, 2, bytes(32), BegunBecause.RESTORED)
    later = entries(1, "node:n-1/1", "chain.begun", detail=begun.detail())
    signed = checkpoint(1, opened[0], *[rows[-1] for rows in (first, later)])
    ctl.fake.answers["ExportAudit"] = [exported(opened + first + later, signed)]

    shown = " ".join(ctl.run("audit", "verify").stdout.split())
    view = ctl.json("audit", "verify")

    assert "1 of n-1 (RESTORED) continues row 1 of chain 0; 2 rows behind that" in shown
    assert view["later_chains"] == [
        {"node_id": "n-1", "chain": 1, "reason": "RESTORED", "continues": 0, "number": 1, "beyond": 2}
    ]
    assert view["lost_commands"] == 0


@pytest.mark.parametrize("covered", [0, 2])
def test_rows_that_nobody_signs_are_a_finding(ctl: Fleetctl, covered: int) -> None:
    """Whoever writes the database invents rows, and chains of writers that are none; the server signs its own."""
    rows = entries(4)
    signed = [checkpoint(1, rows[covered - 1])] if covered else []
    ctl.fake.answers["ExportAudit"] = [exported(rows, *signed)]
    result = ctl.run("audit", "verify")
    assert result.exit_code == 1
    assert "UNSIGNED: within 10 s no signed checkpoint came for 1 chains: replica-a up to row 4" in result.stderr
    assert ctl.profile.load().contexts["default"].checkpoint is None


def test_the_servers_own_alarms_are_counted(ctl: Fleetctl) -> None:
    rows = entries(2, kind="audit.tampered")
    ctl.fake.answers["ExportAudit"] = [exported(rows, checkpoint(1, rows[1]))]
    assert "2 rows audit.tampered" in ctl.run("audit", "verify").stdout
    assert ctl.json("audit", "verify")["alarms"] == 2


def test_an_older_history_than_the_one_seen_is_refused(ctl: Fleetctl) -> None:
    rows = entries(3)
    first = checkpoint(1, rows[1])
    second = checkpoint(2, rows[2], previous=first)
    ctl.fake.answers["ExportAudit"] = [exported(rows, first, second)]
    assert ctl.run("audit", "verify").exit_code == 0
    ctl.fake.answers["ExportAudit"] = [exported(rows[:2], first)]
    result = ctl.run("audit", "verify", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["finding"] == "CHECKPOINT_ROLLED_BACK"
    remembered = ctl.profile.load().contexts["default"].checkpoint
    assert remembered is not None
    assert remembered.number == 2, "what was seen stays remembered"


def test_a_changed_row_is_named(ctl: Fleetctl) -> None:
    rows = entries(3)
    rows[1].actor = "mallory"
    ctl.fake.answers["ExportAudit"] = [exported(rows)]
    result = ctl.run("audit", "verify")
    assert result.exit_code == 1
    assert "CHANGED: row 2 of replica-a" in result.stderr
    assert ctl.profile.load().contexts["default"].checkpoint is None


def test_a_checkpoint_by_another_authority_is_refused(ctl: Fleetctl) -> None:
    rows = entries(1)
    forged = checkpoint(1, rows[0], signer=Signer.from_private_bytes(b"\x77" * 32))
    ctl.fake.answers["ExportAudit"] = [exported(rows, forged)]
    result = ctl.run("audit", "verify")
    assert result.exit_code == 1
    assert "CHECKPOINT_BAD_SIGNATURE" in result.stderr


def test_verification_needs_a_pin_that_is_not_the_servers_word(ctl: Fleetctl) -> None:
    ctl.log_in(authority_key=b"")
    result = ctl.run("audit", "verify")
    assert result.exit_code == 2
    assert "no authority is pinned" in result.stderr
    assert ctl.fake.calls == []
    rows = entries(1)
    ctl.fake.answers["ExportAudit"] = [exported(rows, checkpoint(1, rows[0]))]
    given = ("--authority-key", AUTHORITY.public_key.hex(), "--cluster", "cluster-1")
    assert ctl.run("audit", "verify", *given).exit_code == 0
    assert ctl.run("audit", "verify", "--authority-key", "zz").exit_code == 2


def test_tail_shows_the_newest_rows(ctl: Fleetctl) -> None:
    ctl.fake.answers["ExportAudit"] = [exported(entries(2))]
    table = ctl.run("audit", "tail", "-n", "2").stdout.splitlines()
    assert len(table) == 3
    assert "command.issued" in table[1]
    assert ctl.fake.requests("ExportAudit")[0].last == 2
    followed = ctl.run("audit", "tail", "--follow").stdout.splitlines()
    assert followed == table, "rows that come are laid out like rows that are there"


def test_tail_tells_nodes_by_name_and_asks_once(ctl: Fleetctl) -> None:
    first, second = "nd_" + "a" * 24, "nd_" + "b" * 24
    opened = {"kind": "stream.opened", "actor": f"node:{first}", "subject": f"node:{first}", "at_ms": NOW_MS}
    issued = {"kind": "command.issued", "actor": "ada", "subject": "is_1", "at_ms": NOW_MS}
    seqs = json.dumps({"seqs": {first: [1, 1], second: [7, 7]}}).encode()
    rows = [admin_pb2.AuditEntry(**opened), admin_pb2.AuditEntry(**issued, detail=seqs)]
    known = [node(1, node_id=first), node(2, node_id=second)]
    ctl.fake.answers["ExportAudit"] = [exported(rows), exported(rows[:1])]
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=known)
    for words in ([], ["--follow"]):
        ctl.fake.calls.clear()
        table = ctl.run("audit", "tail", *words).stdout
        assert table.count("node:press-1") == 4
        assert 'seqs={"press-1":[1,1],"press-2":[7,7]}' in table
        assert "nd_" not in table
        assert [list(asked.selector.patterns) for asked in ctl.fake.requests("ListNodes")] == [[first, second]]
    assert ctl.run("audit", "tail", "-o", "json").stdout.count(f"node:{first}") == 4

    ctl.fake.answers["ListNodes"] = Refusal(Reason.NO_TARGETS, f"there is no node {second}")
    assert ctl.run("audit", "tail").stdout.count(f"node:{first}") == 4, "a name that is not given costs no row"


def test_tail_and_export_go_on_behind_the_last_row_after_a_restart(ctl: Fleetctl) -> None:
    rows = entries(3)
    for verb in ("tail", "export"):
        openings = iter([[exported(rows[:2]), grpc.StatusCode.UNAVAILABLE], [exported(rows[2:])]])
        ctl.fake.answers["ExportAudit"] = lambda _request, openings=openings: next(openings)
        result = ctl.run("audit", verb, "--follow", "-o", "json")
        assert [json.loads(line)["position"] for line in result.stdout.splitlines()] == [1, 2, 3]
        again = ctl.fake.requests("ExportAudit")[-1]
        assert (again.last, again.after, again.follow) == (0, 2, True)
    assert ctl.fake.requests("ExportAudit")[1].follow


def test_an_export_holds_what_an_independent_check_needs(ctl: Fleetctl) -> None:
    rows = entries(2)
    signed = checkpoint(1, rows[1])
    ctl.fake.answers["ExportAudit"] = [exported(rows, signed)]
    lines = [json.loads(line) for line in ctl.run("audit", "export", "--after", "7").stdout.splitlines()]
    assert ctl.fake.requests("ExportAudit")[0].after == 7
    assert [line["type"] for line in lines] == ["row", "row", "checkpoint"]
    assert lines[0]["detail"] == '{"n":1}'
    assert bytes.fromhex(lines[1]["hash"]) == rows[1].hash
    assert bytes.fromhex(lines[2]["statement"]) == signed.statement
    assert bytes.fromhex(lines[2]["signatures"][0]["value"]) == signed.signatures[0].value


def test_the_newest_values(ctl: Fleetctl) -> None:
    value = admin_pb2.LatestValue(
        node_name="press-1", name="host.cpu.percent", unit="percent", value=12.3456, at_ms=NOW_MS - 3000
    )
    broken = admin_pb2.LatestValue(node_name="press-1", name="x", value=math.nan, kind=telemetry_pb2.SERIES_KIND_GAUGE)
    ctl.fake.answers["LatestTelemetry"] = admin_pb2.LatestTelemetryResponse(values=[value, broken], truncated=True)
    result = ctl.run("telemetry", "latest", "press-*", "--series", "host.*")
    assert result.stdout.splitlines()[1].split() == ["press-1", "host.cpu.percent", "12.35", "percent", "3.0s"]
    assert "narrow TARGETS" in result.stderr
    request = ctl.fake.requests("LatestTelemetry")[0]
    assert (list(request.selector.patterns), request.series_glob) == (["press-*"], "host.*")
    view = ctl.json("telemetry", "latest")
    assert (view[1]["value"], view[1]["kind"]) == (None, "GAUGE"), "JSON has no NaN"


def test_history_draws_a_chart_and_a_trend(ctl: Fleetctl) -> None:
    at_ms = [NOW_MS - 600_000 + i * 10_000 for i in range(60)]
    series = admin_pb2.SeriesHistory(name="host.cpu.percent", unit="percent", at_ms=at_ms, values=range(60))
    empty = admin_pb2.SeriesHistory(name="host.none")
    ctl.fake.answers["TelemetryHistory"] = admin_pb2.TelemetryHistoryResponse(series=[series, empty])
    result = ctl.run("telemetry", "history", "press-1", "--since", "10m")
    assert result.exit_code == 0, result.output
    assert "host.cpu.percent (percent)" in result.stdout
    assert "┤" in result.stdout
    assert "\x1b" not in result.stdout
    assert "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███" in result.stdout
    assert "host.none: no samples" in result.stdout
    request = ctl.fake.requests("TelemetryHistory")[0]
    assert request.to_ms - request.from_ms == 600_000
    assert request.to_ms == NOW_MS
    assert len(ctl.json("telemetry", "history", "press-1")[0]["at"]) == 60


def test_no_series_is_said_not_only_shown(ctl: Fleetctl) -> None:
    ctl.fake.answers["LatestTelemetry"] = admin_pb2.LatestTelemetryResponse()
    assert "Nothing matches" in ctl.run("telemetry", "latest", "--series", "hots.*").stderr
    ctl.fake.answers["TelemetryHistory"] = admin_pb2.TelemetryHistoryResponse()
    result = ctl.run("telemetry", "history", "press-1", "--series", "hots.*")
    assert "`fleetctl telemetry latest press-1`" in result.stderr


def test_only_so_many_charts_are_drawn(ctl: Fleetctl) -> None:
    series = [admin_pb2.SeriesHistory(name=f"s{i}", at_ms=[NOW_MS], values=[1]) for i in range(3)]
    ctl.fake.answers["TelemetryHistory"] = admin_pb2.TelemetryHistoryResponse(series=series)
    result = ctl.run("telemetry", "history", "press-1", "--charts", "1")
    assert result.stdout.count("┌") == 1
    assert "1 of 3 series are drawn" in result.stderr


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "", "0"),
        (12.3456, "percent", "12.35"),
        (3 * 1024**3, "bytes", "3Gi"),
        (1536, "bytes/s", "1.5Ki"),
        (-2048, "bytes", "-2Ki"),
        (1023, "bytes", "1023"),
        (1e20, "", "1e+20"),
        (math.inf, "", "-"),
        (math.nan, "bytes", "-"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_sparklines() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([5, 5, 5], 8) == "▁▁▁"
    assert sparkline([0, 1], 8) == "▁█"
    assert len(sparkline(list(range(1000)), 24)) == 24


def test_keys_say_whether_the_authority_is_the_pinned_one(ctl: Fleetctl) -> None:
    key = admin_pb2.CommandKeyView(key_id=b"\x01" * 16, phase=trust_pb2.KEY_PHASE_ACTIVE, not_before_ms=NOW_MS)
    version = session_pb2.BundleVersion(generation=1, number=4)
    answer = admin_pb2.ListKeysResponse(
        cluster_id="cluster-1",
        authority_key=AUTHORITY.public_key,
        command_keys=[key],
        bundle_version=version,
        holders=[admin_pb2.BundleHolders(version=version, nodes=10)],
        tls_ca_sha256=b"\xca" * 32,
    )
    ctl.fake.answers["ListKeys"] = answer
    text = ctl.run("keys", "list").stdout
    # The key itself: a node's `authority_key` and `audit verify --authority-key` take it.
    for part in ("the one pinned at login", AUTHORITY.public_key.hex(), "01" * 16, "ACTIVE", "1.4", "CA:CA:CA"):
        assert part in text
    assert ctl.json("keys", "list")["command_keys"][0]["phase"] == "ACTIVE"
    ctl.log_in(authority_key=b"\x13" * 32)
    assert "NOT the one pinned" in ctl.run("keys", "list").stdout
    ctl.log_in(authority_key=b"")
    assert "not pinned" in ctl.run("keys", "list").stdout


KEY = admin_pb2.CommandKeyView(
    key_id=b"\x3f" * 16, phase=trust_pb2.KEY_PHASE_ACTIVE, site="berlin", since_ms=NOW_MS, nodes=7
)


def test_keys_say_since_when_until_when_and_on_how_many_nodes(ctl: Fleetctl) -> None:
    retired = admin_pb2.CommandKeyView(
        key_id=b"\x01" * 16, phase=trust_pb2.KEY_PHASE_RETIRED, since_ms=NOW_MS, verify_until_ms=NOW_MS + 1000
    )
    revoked = admin_pb2.CommandKeyView(key_id=b"\x02" * 16, phase=trust_pb2.KEY_PHASE_REVOKED, since_ms=NOW_MS)
    ctl.fake.answers["ListKeys"] = admin_pb2.ListKeysResponse(command_keys=[retired, KEY, revoked])
    rows = [line.split() for line in ctl.run("keys", "list").stdout.splitlines() if line[:2] in ("01", "3f", "02")]
    assert [row[1:3] + row[-1:] for row in rows] == [
        ["RETIRED", "all", "0"],
        ["ACTIVE", "berlin", "7"],
        ["REVOKED", "all", "0"],
    ]
    assert [row[5:-1] for row in rows][1:] == [["no", "end", "yet"], ["nothing", "verifies"]]
    assert ctl.json("keys", "list")["command_keys"][1]["nodes"] == 7


def test_a_rollout_names_what_lacks_and_says_what_is_ready(ctl: Fleetctl) -> None:
    version = session_pb2.BundleVersion(generation=1, number=4)
    half = admin_pb2.KeyRollout(key_id=b"\x3f" * 16, asked=9, holding=7, away=2, lacking=["press-1", "press-2"])
    done = admin_pb2.KeyRollout(key_id=b"\x40" * 16, site="berlin", asked=3, holding=3, complete=True)
    answer = admin_pb2.GetKeyRolloutResponse(
        bundle_version=version, holders=[admin_pb2.BundleHolders(version=version, nodes=10)], keys=[half, done]
    )
    ctl.fake.answers["GetKeyRollout"] = answer
    result = ctl.run("keys", "rollout")
    for part in ("7 of 9", "press-1, press-2", "3 of 3", "berlin", "1.4"):
        assert part in result.stdout
    assert "fleetctl keys activate 40404040" in result.stderr
    assert "3f3f3f3f" not in result.stderr
    assert [key["complete"] for key in ctl.json("keys", "rollout")["keys"]] == [False, True]
    ctl.fake.answers["GetKeyRollout"] = admin_pb2.GetKeyRolloutResponse(bundle_version=version)
    assert "`fleetctl keys prepare`" in ctl.run("keys", "rollout").stderr


def test_steps_of_a_rotation_send_what_was_said(ctl: Fleetctl) -> None:
    ctl.fake.answers |= {
        "PrepareKey": admin_pb2.PrepareKeyResponse(key=KEY),
        "ActivateKey": admin_pb2.ActivateKeyResponse(key=KEY, rollout=admin_pb2.KeyRollout(asked=9, holding=7)),
        "RetireKey": admin_pb2.RetireKeyResponse(key=KEY),
        "RevokeKey": admin_pb2.RevokeKeyResponse(key=KEY),
    }
    said = ctl.run("keys", "prepare", "--site", "berlin").stderr
    assert "fleetctl keys rollout" in said
    assert "fleetctl keys activate 3f3f3f3f" in said
    assert ctl.fake.requests("PrepareKey")[0].site == "berlin"
    assert "7 of 9 nodes" in ctl.run("keys", "activate", "3f3f3f3f", "--override", "press-1 is scrap").stderr
    assert ctl.run("keys", "activate", "3f3f3f3f").exit_code == 0
    assert [asked.override_reason for asked in ctl.fake.requests("ActivateKey")] == ["press-1 is scrap", ""]
    assert ctl.run("keys", "activate", "3f3f3f3f", "--override", " ").exit_code == 2
    assert ctl.run("keys", "retire", "3f3f3f3f", "--verify-for", "1h").exit_code == 0
    assert ctl.fake.requests("RetireKey")[0].verify_for_s == 3600
    assert ctl.run("keys", "revoke", "3f3f3f3f", "--yes").exit_code == 2, "a reason is asked for"
    assert ctl.run("keys", "revoke", "3f3f3f3f", "--reason", "leaked").exit_code == 2, "nobody is there to confirm"
    stopped = ctl.run("keys", "revoke", "3f3f3f3f", "--reason", "leaked", "--yes", "--stop-commands")
    assert stopped.exit_code == 0
    assert "fleetctl keys prepare" in stopped.stderr
    (asked,) = ctl.fake.requests("RevokeKey")
    assert (asked.key, asked.reason, asked.stop_commands) == ("3f3f3f3f", "leaked", True)
    assert ctl.json("keys", "prepare")["key"]["phase"] == "ACTIVE"


def test_a_refused_activation_shows_the_servers_numbers(ctl: Fleetctl) -> None:
    ctl.fake.answers["ActivateKey"] = Refusal(Reason.CONFLICT, "7 of 9 nodes hold it: wait, or use --override")
    result = ctl.run("keys", "activate", "3f3f3f3f")
    assert result.exit_code == 3
    assert "7 of 9 nodes" in result.stderr
