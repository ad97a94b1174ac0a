"""One machine that crashes anywhere always keeps up with its ratchet; two machines with one ratchet never do."""

import itertools
import os

from hypothesis import given
from hypothesis import strategies as st

from fleet_server.sessions.hello import BOOT_ID_BYTES
from fleet_server.sessions.ratchet import MAX_BOOTS, Verdict, digest, has_come_back, judge, with_newest


class Server:
    """What the server keeps of one node."""

    def __init__(self) -> None:
        self.confirmed_sha256 = b""
        self.offered = b""

    def hello(self, shown: bytes) -> bytes | None:
        verdict = judge(confirmed_sha256=self.confirmed_sha256, offered=self.offered, shown=shown)
        if verdict is Verdict.FOREIGN:
            return None
        if verdict is not Verdict.LAGS or not self.offered:
            self.confirmed_sha256, self.offered = digest(shown), os.urandom(32)
        return self.offered


class Machine:
    def __init__(self, held: bytes = b"") -> None:
        self.held = held

    def connect(self, server: Server, *, stores: bool = True) -> bool:
        handed_on = server.hello(self.held)
        if handed_on is not None and stores:
            self.held = handed_on
        return handed_on is not None


@given(st.lists(st.booleans(), max_size=40))
def test_a_machine_that_loses_what_it_was_handed_is_never_foreign(stores: list[bool]) -> None:
    server, machine = Server(), Machine()
    assert all(machine.connect(server, stores=stored) for stored in stores)


@given(before=st.integers(0, 5), lead=st.integers(2, 5), stores=st.lists(st.booleans(), max_size=10))
def test_a_copy_that_falls_two_values_behind_is_foreign_for_ever(before: int, lead: int, stores: list[bool]) -> None:
    server, machine = Server(), Machine()
    for _ in range(before):
        machine.connect(server)
    copy = Machine(machine.held)
    for _ in range(lead):
        assert machine.connect(server)
    assert not any(copy.connect(server, stores=stored) for stored in stores or [True])
    assert machine.connect(server)


@given(st.lists(st.booleans(), min_size=2, max_size=40))
def test_of_two_machines_that_both_move_on_one_is_foreign(turns: list[bool]) -> None:
    server = Server()
    machines = {False: Machine(), True: Machine()}
    refused = False
    for turn in turns:
        refused |= not machines[turn].connect(server)
    runs = [1]
    for earlier, later in itertools.pairwise(turns):
        runs = [*runs[:-1], runs[-1] + 1] if earlier is later else [*runs, 1]
    # Whoever connects after the other has moved on twice in between is found out.
    left_behind = any(run >= 3 for run in runs[:-1])
    assert refused or not left_behind


@given(shown=st.binary(max_size=40), offered=st.binary(min_size=32, max_size=32), confirmed=st.binary(max_size=32))
def test_only_what_was_handed_on_is_taken(shown: bytes, offered: bytes, confirmed: bytes) -> None:
    verdict = judge(confirmed_sha256=digest(confirmed), offered=offered, shown=shown)
    expected = Verdict.KEEPS_UP if shown == offered else Verdict.LAGS if shown == confirmed else Verdict.FOREIGN
    assert verdict is expected


@given(st.lists(st.integers(0, MAX_BOOTS - 1), min_size=1, max_size=40))
def test_of_processes_that_take_turns_the_first_that_comes_back_is_found_out(turns: list[int]) -> None:
    boots = b""
    for position, process in enumerate(turns):
        another_since = process in turns[:position] and turns[position - 1] != process
        boot_id = bytes([process]) * BOOT_ID_BYTES if process else b""
        assert has_come_back(boots, boot_id) == another_since
        if another_since:
            return
        boots = with_newest(boots, boot_id)
        assert not has_come_back(boots, boot_id)
        assert len(boots) <= MAX_BOOTS * BOOT_ID_BYTES
