import asyncio

from fleet_server.database.wakeup import Bell, Wakeup
from tests.fakes.clock import MockClock
from tests.integration.waiting import eventually


def test_a_topic_wakes_its_subscribers_and_nobody_else() -> None:
    wakeup = Wakeup()
    woken: list[str] = []
    wakeup.subscribe("node:a", lambda: woken.append("a1"))
    wakeup.subscribe("node:a", lambda: woken.append("a2"))
    wakeup.subscribe("node:b", lambda: woken.append("b"))
    wakeup.wake_nowait(["node:a", "node:a", "node:c"])
    assert woken == ["a1", "a2"]


def test_unsubscribing_twice_forgets_once_and_leaves_no_topic_behind() -> None:
    wakeup = Wakeup()
    woken: list[str] = []
    leave = wakeup.subscribe("audit", lambda: woken.append("left"))
    stay = wakeup.subscribe("audit", lambda: woken.append("stayed"))
    leave()
    leave()
    wakeup.wake_nowait(["audit"])
    assert woken == ["stayed"]
    stay()
    assert wakeup.topics() == 0


def test_a_subscriber_may_leave_or_fail_while_it_is_woken() -> None:
    wakeup = Wakeup()
    woken: list[str] = []
    leave = wakeup.subscribe("nodes", lambda: (woken.append("once"), leave())[0])
    wakeup.subscribe("nodes", lambda: woken.append("x"[3]))
    wakeup.subscribe("nodes", lambda: woken.append("last"))
    wakeup.wake_nowait(["nodes"])
    wakeup.wake_nowait(["nodes"])
    assert woken == ["once", "last", "last"]


def test_a_kind_of_topic_has_one_subscriber_that_is_told_which() -> None:
    wakeup = Wakeup()
    woken: list[str] = []
    wakeup.subscribe_kind("node", woken.append)
    wakeup.subscribe("node:a", lambda: woken.append("itself"))
    wakeup.wake_nowait(["node:a", "node:b", "nodes", "node-state:a"])
    assert woken == ["itself", "a", "b"]


def test_nobody_is_told_while_there_is_no_way_to_others() -> None:
    wakeup = Wakeup()
    woken: list[str] = []
    wakeup.subscribe("nodes", lambda: woken.append("here"))
    wakeup.spread_nowait(["nodes"])
    told: list[str] = []
    wakeup.tell_with(told.extend)
    wakeup.spread_nowait(topic for topic in ["nodes"])
    wakeup.tell_others_nowait(["node:a"])
    wakeup.wake_nowait(["nodes"])
    assert woken == ["here"] * 3
    assert told == ["nodes", "node:a"]


async def test_a_hint_wakes_no_subscriber_and_is_passed_on_at_once_then_after_a_pause() -> None:
    wakeup = Wakeup()
    woken: list[str] = []
    hints: list[frozenset[str] | None] = []
    wakeup.subscribe("node:a", lambda: woken.append("a"))
    wakeup.subscribe_kind("node", woken.append)
    wakeup.on_hint("node", hints.append, pause_s=0.01)
    wakeup.hinted({"node": ["a"], "weather": ["b"]})
    assert hints == [frozenset({"a"})]
    wakeup.hinted({"node": ["b"]})
    wakeup.hinted({"node": ["c"]})
    assert len(hints) == 1
    await eventually(lambda: len(hints) == 2, "the pause is over")
    wakeup.hinted_everything()
    assert hints[1] == frozenset({"b", "c"})
    assert woken == []


async def test_a_bell_is_answered_at_once_and_otherwise_in_its_time(clock: MockClock) -> None:
    bell = Bell(clock)
    bell.ring_nowait()
    assert await bell.wait(5.0)
    waiting = asyncio.create_task(bell.wait(5.0))
    await clock.wait_sleepers(1)
    await clock.advance(5.0)
    assert not await waiting
