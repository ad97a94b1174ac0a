"""What a replica says that it has time for: measured, and honest while it is busy with other things."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.metrics import Registry
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions.admission import Admission, AdmissionPolicy
from fleet_server.sessions.capacity import Capacity, spare_per_s
from tests.fakes.clock import MockClock


@given(st.floats(1, 2_000), st.floats(0, 1), st.floats(1, 100))
def test_never_more_than_is_admitted_nor_less_than_always_is(rate_per_s: float, busy: float, least: float) -> None:
    spare = spare_per_s(rate_per_s, share=0.75, busy=busy, least=least)
    assert min(rate_per_s, least) <= spare <= rate_per_s
    assert spare_per_s(rate_per_s, share=0.75, busy=0.0, least=least) == rate_per_s


class Busy:
    """An admission under work that a test makes up."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.cpu_s = 0.0
        policy = AdmissionPolicy(unmeasured_cost_s=0.005, guessed_cost_s=0.005, least_per_s=10)
        self.admission = Admission(
            clock=clock, metrics=SessionMetrics(Registry()), policy=policy, cpu_s=lambda: self.cpu_s
        )
        self.capacity = Capacity(self.admission, clock, cpu_s=lambda: self.cpu_s)

    async def beats(self, *, work: float = 0.0, handshakes: int = 0, count: int = 20) -> None:
        """Heartbeats with so much other work in each second, part of it, and so many handshakes."""
        for _ in range(count):
            for number in range(handshakes):
                self.admission.admit_handshake(b"key%d" % number, f"10.0.0.{number % 250}")
                self.cpu_s += 0.005
            self.cpu_s += work
            await self.clock.advance(1.0)
            self.capacity.measure()


async def test_an_idle_one_offers_what_it_admits(clock: MockClock) -> None:
    busy = Busy(clock)
    await busy.beats()
    assert busy.capacity.offered_per_s == busy.admission.rate_per_s == 150


async def test_one_that_works_offers_what_is_left(clock: MockClock) -> None:
    busy = Busy(clock)
    await busy.beats(work=0.7)
    assert 55 < busy.capacity.offered_per_s < 65, "0.3 s of each second, 5 ms each"
    await busy.beats(work=1.0)
    assert busy.capacity.offered_per_s == 10
    await busy.beats()
    assert busy.capacity.offered_per_s > 140


async def test_the_handshakes_of_a_drain_do_not_slow_that_drain(clock: MockClock) -> None:
    busy = Busy(clock)
    await busy.beats(handshakes=20, count=10)
    assert busy.capacity.offered_per_s == 150
    assert busy.capacity.taking_per_s == 20
