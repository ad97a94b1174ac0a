"""Who comes back to a replica that is busy, and who is let in: over the clock that a test moves."""

from contextlib import ExitStack

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.sessions.admission import Admission
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.test_admission import ELSEWHERE, HOME, make


def busy(clock: MockClock, *, worked_on_least: int = 32) -> Admission:
    """Lets in ten a second, two at once, one of them for those who come to their slot; and one was let in."""
    admission = make(clock, least_per_s=10.0, most_per_s=10.0, burst_s=0.2, worked_on_least=worked_on_least)
    assert delay_s(admission, b"first") == 0.0
    return admission


def delay_s(admission: Admission, key: bytes, address: str = HOME) -> float:
    """0 for whoever is let in."""
    try:
        assert admission.admit_handshake(key, address)
    except Refusal as refusal:
        assert refusal.reason is Reason.OVERLOADED
        assert refusal.retry_after_s
        return refusal.retry_after_s
    return 0.0


def test_who_was_sent_away_is_let_in_at_its_slot_whoever_else_calls(clock: MockClock) -> None:
    admission = busy(clock)
    waits_s = delay_s(admission, b"node")
    clock.advance_nowait(waits_s)
    for number in range(30):
        assert delay_s(admission, b"other%d" % number) > 0
    assert delay_s(admission, b"node") == 0.0


def test_who_calls_before_its_slot_is_told_the_same_one(clock: MockClock) -> None:
    admission = busy(clock)
    slots = []
    for _ in range(5):
        slots.append(clock.monotonic() + delay_s(admission, b"node"))
        clock.advance_nowait(0.01)
    assert max(slots) - min(slots) < 1e-6
    assert clock.monotonic() + delay_s(admission, b"next") - slots[0] == pytest.approx(0.1, abs=0.001)


def test_a_thief_elsewhere_takes_no_slot_of_the_nodes(clock: MockClock) -> None:
    admission = busy(clock)
    waits_s = delay_s(admission, b"stolen", HOME)
    assert delay_s(admission, b"stolen", ELSEWHERE) > waits_s
    clock.advance_nowait(waits_s)
    assert delay_s(admission, b"stolen", ELSEWHERE) > 0
    assert delay_s(admission, b"stolen", HOME) == 0.0


def test_a_thief_at_many_addresses_lengthens_the_line_by_four_and_keeps_the_node_from_nothing(
    clock: MockClock,
) -> None:
    admission = busy(clock)
    for number in range(4):
        assert delay_s(admission, b"stolen", f"198.51.100.{number}") > 0
    for number in range(4, 200):
        assert not admission.admit_handshake(b"stolen", f"198.51.100.{number}"), "has to prove itself"
    assert delay_s(admission, b"another") < 0.6
    assert not admission.admit_handshake(b"stolen", HOME)
    with pytest.raises(Refusal) as caught:
        admission.admit_owing(b"stolen")  # the node, by its proof
    assert caught.value.retry_after_s
    assert caught.value.retry_after_s < 0.7
    clock.advance_nowait(caught.value.retry_after_s)
    assert not admission.admit_handshake(b"stolen", HOME), "its slot is by its proof"
    admission.admit_owing(b"stolen")


def test_while_too_much_is_worked_on_nobody_begins_and_who_has_a_slot_is_next(clock: MockClock) -> None:
    admission = busy(clock, worked_on_least=3)
    waits_s = delay_s(admission, b"node")
    with ExitStack() as work:
        for number in range(3):
            work.enter_context(admission.proving("CompleteHandshake", b"busy%d" % number, HOME))
        clock.advance_nowait(waits_s)
        again_s = delay_s(admission, b"node")
        assert again_s > 0
        behind_s = delay_s(admission, b"late")
    assert again_s < behind_s
    clock.advance_nowait(again_s)
    assert delay_s(admission, b"node") == 0.0


def test_a_server_that_is_behind_admits_what_it_gets_done(clock: MockClock) -> None:
    admission = make(clock, unmeasured_cost_s=0.002, guessed_cost_s=0.002, worked_on_least=4)
    assert admission.rate_per_s == pytest.approx(375)
    behind = [admission.proving("Connect", b"key%d" % number, HOME) for number in range(500)]
    for proof in behind[:100]:
        proof.__enter__()
    for done in range(400):  # a hundred a second, and as many are always waiting
        clock.advance_nowait(0.01)
        behind[done].__exit__(None, None, None)
        behind[done + 100].__enter__()
    assert admission.rate_per_s == pytest.approx(100, abs=5)
    for proof in behind[400:]:
        proof.__exit__(None, None, None)
    for second in range(60):
        clock.advance_nowait(1.0)
        delay_s(admission, b"idle%d" % second)
    assert admission.rate_per_s == pytest.approx(375)


def test_what_is_under_way_counts_from_the_first_call_to_the_stream(clock: MockClock) -> None:
    admission = make(clock)
    for address in (HOME, ELSEWHERE):
        assert delay_s(admission, b"node", address) == 0.0
    assert delay_s(admission, b"fails") == delay_s(admission, b"vanishes") == 0.0
    assert admission.under_way == 3, "one of each api_key, however many begin with it"
    with pytest.raises(Refusal), admission.proving("CompleteHandshake", b"fails", HOME):
        raise Refusal(Reason.BAD_PROOF, "no")
    with admission.proving("CompleteHandshake", b"node", HOME):
        assert admission.under_way == 2
    assert admission.under_way == 2
    with admission.proving("Connect", b"node", HOME):
        pass
    assert admission.under_way == 1
    clock.advance_nowait(11)
    assert admission.under_way == 0


def test_a_call_whose_credential_was_not_looked_at_lengthens_no_line(clock: MockClock) -> None:
    admission = busy(clock)
    for _ in range(1000):
        refusal = admission.overloaded()
        assert refusal.retry_after_s
        assert 0 < refusal.retry_after_s <= 60
    assert delay_s(admission, b"node") < 0.2
