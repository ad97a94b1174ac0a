"""Every step of a command key's life from every phase: most are refusals, and each says what to do."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.trust import MAX_COMMAND_KEYS, CommandKey
from fleet.v1 import trust_pb2
from fleet_server.trust import phases, rollout
from fleet_server.trust.phases import ACTIVE, DAY_MS, PREPARED, RETIRED, REVOKED, Change, KeyRecord
from fleet_server.trust.rollout import BundleHolding

NOW = 1_900_000_000_000
PERIOD = 30 * DAY_MS


def record(
    number: int, phase: int, site: str = "", *, since_ms: int = NOW, verify_until_ms: int = 0, first: int = 1
) -> KeyRecord:
    key = CommandKey(bytes([number]) * 32, site, NOW, verify_until_ms, trust_pb2.KeyPhase.ValueType(phase))
    return KeyRecord(bytes([number]) * 16, key, NOW, since_ms, (1, first))


def retired(number: int, site: str = "", *, until_ms: int = NOW + DAY_MS) -> KeyRecord:
    return record(number, RETIRED, site, verify_until_ms=until_ms)


CLUSTER = record(1, ACTIVE)
NEXT = record(2, PREPARED)
BERLIN = record(3, ACTIVE, "berlin")
BERLIN_NEXT = record(4, PREPARED, "berlin")
OLD = retired(5)
GONE = record(6, REVOKED)


def test_activation_retires_the_key_before_it_for_a_day() -> None:
    changes = phases.activate([CLUSTER, NEXT, BERLIN], NEXT, now_ms=NOW)
    assert changes == [Change(NEXT, ACTIVE), Change(CLUSTER, RETIRED, NOW + DAY_MS)]
    assert phases.activate([CLUSTER, BERLIN_NEXT], BERLIN_NEXT, now_ms=NOW) == [Change(BERLIN_NEXT, ACTIVE)]


@pytest.mark.parametrize(
    ("key", "says"), [(CLUSTER, "ACTIVE already"), (OLD, "never signs again"), (GONE, "never signs again")]
)
def test_only_a_prepared_key_is_activated(key: KeyRecord, says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        phases.activate([CLUSTER, NEXT, OLD, GONE], key, now_ms=NOW)
    assert refused.value.reason is Reason.CONFLICT


def test_a_sites_key_gives_way_to_the_clusters_and_a_retired_one_ends_sooner() -> None:
    assert phases.retire([CLUSTER, BERLIN], BERLIN, now_ms=NOW, verify_for_ms=5) == [Change(BERLIN, RETIRED, NOW + 5)]
    assert phases.retire([CLUSTER, OLD], OLD, now_ms=NOW, verify_for_ms=1) == [Change(OLD, RETIRED, NOW + 1)]


RETIRE_REFUSED = {
    "the cluster's only key": (CLUSTER, DAY_MS, Reason.CONFLICT, "prepare and activate another"),
    "a prepared one": (NEXT, DAY_MS, Reason.CONFLICT, "has never signed"),
    "a revoked one": (GONE, DAY_MS, Reason.CONFLICT, "nothing to retire"),
    "a retired one, to end later": (OLD, DAY_MS + 1, Reason.CONFLICT, "only comes nearer"),
    "for no time": (BERLIN, 0, Reason.INVALID_ARGUMENT, "shorter"),
    "for ever": (BERLIN, 31 * DAY_MS, Reason.INVALID_ARGUMENT, "shorter"),
}


@pytest.mark.parametrize(("key", "verify_for_ms", "reason", "says"), RETIRE_REFUSED.values(), ids=RETIRE_REFUSED.keys())
def test_retirements_that_are_refused(key: KeyRecord, verify_for_ms: int, reason: Reason, says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        phases.retire([CLUSTER, NEXT, BERLIN, OLD, GONE], key, now_ms=NOW, verify_for_ms=verify_for_ms)
    assert refused.value.reason is reason


def test_a_sites_key_without_a_clusters_beside_it_is_not_retired() -> None:
    with pytest.raises(Refusal, match="only one that signs"):
        phases.retire([BERLIN], BERLIN, now_ms=NOW, verify_for_ms=1)


@pytest.mark.parametrize("key", [NEXT, OLD, BERLIN], ids=["prepared", "retired", "a site's"])
def test_what_does_not_sign_or_has_a_stand_in_is_revoked_alone(key: KeyRecord) -> None:
    changes = phases.revoke([CLUSTER, NEXT, BERLIN, OLD], key, stop_commands=False)
    assert changes == [Change(key, REVOKED, key.key.verify_until_ms)]


def test_a_prepared_key_takes_the_place_of_a_revoked_one_at_once() -> None:
    assert phases.revoke([CLUSTER, NEXT], CLUSTER, stop_commands=False) == [
        Change(CLUSTER, REVOKED),
        Change(NEXT, ACTIVE),
    ]
    assert phases.revoke([CLUSTER, BERLIN, BERLIN_NEXT], BERLIN, stop_commands=False)[1:] == [
        Change(BERLIN_NEXT, ACTIVE)
    ]


def test_the_last_key_is_revoked_only_by_who_says_that_commands_stop() -> None:
    for key, others in ((CLUSTER, [BERLIN, BERLIN_NEXT, OLD]), (BERLIN, [NEXT])):
        with pytest.raises(Refusal, match="--stop-commands") as refused:
            phases.revoke([key, *others], key, stop_commands=False)
        assert refused.value.reason is Reason.CONFLICT
        assert phases.revoke([key, *others], key, stop_commands=True) == [Change(key, REVOKED)]
    with pytest.raises(Refusal, match="revoked already"):
        phases.revoke([CLUSTER, GONE], GONE, stop_commands=True)


PREPARE_REFUSED = {
    "one waits": ([CLUSTER, NEXT], "", "PREPARED for every site already"),
    "a site's waits": ([CLUSTER, BERLIN_NEXT], "berlin", "PREPARED for site berlin already"),
    "no site": ([CLUSTER], "Berlin!", "is no site"),
    "the bundle is full": (
        [CLUSTER, *(record(n, ACTIVE, f"s{n}") for n in range(2, MAX_COMMAND_KEYS + 1))],
        "",
        "holds 64 command keys",
    ),
}


@pytest.mark.parametrize(("records", "site", "says"), PREPARE_REFUSED.values(), ids=PREPARE_REFUSED.keys())
def test_preparations_that_are_refused(records: list[KeyRecord], site: str, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        phases.check_prepare(records, site, NOW)


def test_scopes_do_not_stand_in_each_others_way() -> None:
    phases.check_prepare([CLUSTER, NEXT, GONE, OLD], "berlin", NOW)
    phases.check_prepare([CLUSTER, BERLIN, BERLIN_NEXT], "", NOW)


def test_bundles_name_what_may_verify_and_what_was_revoked_lately() -> None:
    records = [CLUSTER, NEXT, OLD, GONE, BERLIN]
    assert phases.certified(records, NOW) == [each.key for each in records]
    assert phases.certified(records, NOW + DAY_MS) == [each.key for each in (CLUSTER, NEXT, GONE, BERLIN)]
    later = NOW + phases.REVOKED_SHOWN_MS
    assert phases.certified(records, later) == [each.key for each in (CLUSTER, NEXT, BERLIN)]


def test_keys_are_found_by_the_beginning_of_their_id() -> None:
    records = [record(0x1A, ACTIVE), record(0x1B, PREPARED)]
    assert phases.find(records, "1a1a1a1a") is records[0]
    assert phases.find(records, records[1].key_id.hex().upper()) is records[1]
    twin = KeyRecord(records[0].key_id[:8] + bytes(8), CLUSTER.key, NOW, NOW, (1, 1))
    for ref, reason in (
        ("1a1a1a", Reason.INVALID_ARGUMENT),
        ("ffffffff", Reason.NOT_FOUND),
        ("1a1a1a1a", Reason.INVALID_ARGUMENT),
    ):
        with pytest.raises(Refusal) as refused:
            phases.find([*records, twin], ref)
        assert refused.value.reason is reason


SCHEDULE = {
    "too young for anything": ([record(1, ACTIVE, since_ms=NOW - PERIOD + DAY_MS + 1)], []),
    "a day ahead the next is prepared": (
        [record(1, ACTIVE, since_ms=NOW - PERIOD + DAY_MS)],
        [("", None)],
    ),
    "activated when both are old enough": (
        [record(1, ACTIVE, since_ms=NOW - PERIOD), record(2, PREPARED, since_ms=NOW - DAY_MS)],
        [("", 2)],
    ),
    "not before a prepared one is a day old": (
        [record(1, ACTIVE, since_ms=NOW - 2 * PERIOD), record(2, PREPARED, since_ms=NOW - DAY_MS + 1)],
        [],
    ),
    "nor before the active one is old": (
        [record(1, ACTIVE, since_ms=NOW - PERIOD + 1), record(2, PREPARED, since_ms=NOW - 9 * DAY_MS)],
        [],
    ),
    "each scope for itself": (
        [record(1, ACTIVE), record(2, PREPARED), record(3, ACTIVE, "berlin", since_ms=NOW - PERIOD)],
        [("berlin", None)],
    ),
    "a scope without an active key is a person's to decide": ([record(1, PREPARED, since_ms=0), GONE], []),
}


@pytest.mark.parametrize(("records", "steps"), SCHEDULE.values(), ids=SCHEDULE.keys())
def test_the_schedule(records: list[KeyRecord], steps: list[tuple[str, int | None]]) -> None:
    found = phases.due(records, now_ms=NOW, period_ms=PERIOD)
    assert [(step.site, step.activate and step.activate.key_id[0]) for step in found] == steps


STEPS_BACK = {
    "revoked, and active again": (GONE, record(6, ACTIVE), True),
    "retired, and active again": (OLD, record(5, ACTIVE), True),
    "retired, and its end moved away": (OLD, retired(5, until_ms=NOW + 2 * DAY_MS), True),
    "retired, and its end gone": (OLD, record(5, RETIRED), True),
    "another site's": (BERLIN, record(3, ACTIVE, "paris"), True),
    "the same": (OLD, OLD, False),
    "sooner at its end": (OLD, retired(5, until_ms=NOW + 1), False),
    "a step on": (NEXT, record(2, ACTIVE), False),
    "revoked": (OLD, record(5, REVOKED), False),
}


@pytest.mark.parametrize(("before", "now", "back"), STEPS_BACK.values(), ids=STEPS_BACK.keys())
def test_rows_that_were_put_back_are_known(before: KeyRecord, now: KeyRecord, back: bool) -> None:
    assert phases.steps_back(now.key, before.key) is back


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
def test_a_reason_is_asked_for(reason: str) -> None:
    with pytest.raises(Refusal, match="say why"):
        phases.checked_reason(reason)


def test_a_rollout_waits_for_nodes_that_are_there_and_counts_the_others() -> None:
    key = record(2, PREPARED, first=5)
    published = [(1, number) for number in range(1, 7)]
    holdings = [
        BundleHolding((1, 4), 5, 2, "press-4"),
        BundleHolding((1, 5), 3, 3, "press-5"),
        BundleHolding((1, 6), 2, 1, "press-6"),
        BundleHolding((1, 9), 1, 1, "press-9"),
        BundleHolding((0, 0), 1, 0, ""),
    ]
    far = rollout.measure(key, published, holdings)
    assert (far.asked, far.holding, far.away, far.complete) == (7, 4, 4, False)
    assert far.lacking == ["press-4", "press-9"], "a bundle that this server never published carries nothing it knows"
    with pytest.raises(Refusal, match="4 of 7 nodes") as refused:
        rollout.check_complete(far)
    assert refused.value.metadata == {"asked": "7", "holding": "4", "lacking": "3"}
    rollout.check_complete(rollout.measure(key, published, holdings[1:3]))
    rollout.check_complete(rollout.measure(key, published, []))
