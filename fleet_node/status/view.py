"""The answer to `fleet-node status` as text for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fleet.errors import Advice, Reason, advice
from fleet_node.drivers.protected import unmatched_remedy
from fleet_node.status.people import protected_sentence, sentence
from fleet_node.status.routes import route_fields

_WHAT_TO_DO = {
    Reason.NOT_APPROVED: "an operator has to approve this node: `fleetctl enrollments list`",
    Reason.REJECTED: "an operator rejected this node: ask why, and enroll again with a new join token",
    Reason.SUSPENDED: "an operator suspended this node: `fleetctl nodes resume` lets it back; it asks by itself",
    Reason.REVOKED: "this membership is over: enroll again with an empty state folder and a new join token",
    Reason.QUARANTINED: "another machine has shown this node's keys, or this one was restored or rolled back: switch"
    " the wrong one off, then an operator runs `fleetctl nodes adopt`. Neither? `fleetctl audit tail` tells what the"
    " server found",
    Reason.UNKNOWN_CREDENTIAL: "the server does not know this api_key: was the node revoked, or the server restored?",
    Reason.BAD_PROOF: "a proof did not verify: `fleet-node doctor` tells whose",
    Reason.WRONG_CERTIFICATE: "something in between may open TLS: `fleet-node doctor` shows the certificate",
    Reason.CLIENT_CERTIFICATE: "the node gets another certificate by itself, over `endpoints`: let it reach those",
    Reason.CLOCK_SKEW: "set this machine's clock (NTP)",
    Reason.CLONE_DETECTED: "two machines use this node's keys: stop one, and enroll it with its own state folder",
    Reason.PROTOCOL_TOO_OLD: "install a newer fleet-node",
    Reason.UNAVAILABLE: "`fleet-node doctor` finds out where the way to the gateway ends",
    Reason.SUPERSEDED: "a newer stream of this node took over: does a copy of it run somewhere?",
}
_BY_ADVICE = {
    Advice.RETRY: "the node comes back by itself",
    Advice.WAIT: "the node asks again at long intervals; an operator may have to act",
    Advice.STOP: "a person has to act; the sentence above says how",
}


_CREDENTIALS = {"api_key": "api_key", "keys": "keys of its own"}


def what_to_do(reason: str) -> str:
    """The next step after a refusal with this reason; empty for no refusal."""
    if not reason:
        return ""
    known = Reason(reason) if reason in Reason.__members__ else Reason.INTERNAL
    return _WHAT_TO_DO.get(known, _BY_ADVICE[advice(known)])


def fields(said: Mapping[str, Any], now_ms: int) -> Iterator[tuple[str, str]]:
    """The whole answer, as labels and values.

    Args:
        said: what `status.local.status` returns.
        now_ms: Unix milliseconds, for ages.
    """
    yield from _local(said, now_ms)
    yield from _daemon(said, now_ms)


def _local(said: Mapping[str, Any], now_ms: int) -> Iterator[tuple[str, str]]:
    if said["enrollment"] == "member":
        yield "node", f"{said['name']} ({said['node_id']})"
        yield "cluster", said["cluster_id"] + (f", site {said['site']}" if said["site"] else "")
    elif said["enrollment"] == "pending":
        yield "node", f"enrollment {said['enrollment_id']} waits for an operator: `fleet-node enroll` goes on waiting"
    else:
        yield "node", "not enrolled: `fleet-node enroll --token-file FILE`"
    yield "fingerprint", said["fingerprint"] or "no keys yet"
    yield "state folder", said["state_dir"]
    if "bundle" in said:
        yield "trust bundle", _bundle(said["bundle"], now_ms)
    if "owner" in said:
        yield "owner", sentence(said["owner"], now_ms)


def _bundle(bundle: Mapping[str, Any], now_ms: int) -> str:
    if "problem" in bundle:
        return str(bundle["problem"])
    left_ms = bundle["expires_at_ms"] - now_ms
    when = f"expires {_date(bundle['expires_at_ms'])}" if left_ms > 0 else f"EXPIRED {_date(bundle['expires_at_ms'])}"
    return f"{bundle['generation']}.{bundle['number']}, {when}"


def _daemon(said: Mapping[str, Any], now_ms: int) -> Iterator[tuple[str, str]]:
    live = said["daemon"]
    if live is None:
        yield "daemon", said["daemon_problem"] or "not running: `fleet-node run`"
        return
    link, commands, telemetry = live["link"], live["commands"], live["telemetry"]
    yield "daemon", f"process {live['pid']}, version {live['version']}, up {_age(now_ms - live['started_at_ms'])}"
    yield "stream", f"{link['state']} for {_age(now_ms - link['since_ms'])}" + _next_attempt(link)
    if link["state"] in ("live", "moving"):
        yield "", f"{link['stream_id']} (epoch {link['stream_epoch']}) at {link['endpoint']}, {link['replica_id']}"
        round_trip = f"{link['rtt_us'] / 1000:.1f} ms" if link["rtt_us"] else "not measured yet"
        yield "", f"round trip {round_trip}, clock {link['clock_offset_ms']:+d} ms"
    if link["last_refusal"]:
        yield "last refusal", f"{link['last_refusal']}: {link['last_detail']}"
        yield "what to do", what_to_do(link["last_refusal"])
    if rotating := live["credentials"]["rotating"]:
        yield "credentials", f"new {' and '.join(map(_CREDENTIALS.__getitem__, rotating))} on the way to being used"
    yield "commands", _commands(commands)
    yield "telemetry", _telemetry(telemetry)
    yield "drivers", ", ".join(live["drivers"]) or "none"
    for problem in live["driver_problems"]:
        yield "left out", f"{problem['driver']} ({problem['reason']}): {problem['detail']}"
    yield "protected", protected_sentence(live["protected"])
    for glob in live["protected"]["unmatched"]:
        yield "protects nothing", f"`{glob}` matches no action here: {unmatched_remedy(glob)}"
    yield from route_fields(live.get("routes"))
    yield "metrics", live["metrics_address"]


def _next_attempt(link: Mapping[str, Any]) -> str:
    return f", next attempt within {link['next_attempt_s']:.0f} s" if link["next_attempt_s"] else ""


def _commands(commands: Mapping[str, Any]) -> str:
    drained = ", DRAINED: takes no work until resumed" if commands["drained"] else ""
    return (
        f"{commands['running']} running, {commands['journal_rows']} journaled, "
        f"{commands['reports_unacknowledged']} reports not acknowledged{drained}"
    )


def _telemetry(telemetry: Mapping[str, Any]) -> str:
    dropped = f", {telemetry['dropped_batches']} dropped" if telemetry["dropped_batches"] else ""
    return f"{telemetry['spool_batches']} batches spooled ({telemetry['spool_bytes'] / 1024:.0f} KiB){dropped}"


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _age(span_ms: int) -> str:
    seconds = max(0, span_ms // 1000)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
