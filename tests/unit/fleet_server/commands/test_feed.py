"""When watchers are woken: at once by an end, and a moment later by a state on the way there."""

import asyncio

from fleet_server.commands.feed import ChangeFeed

KEY, OTHER = ("n1", 1), ("n1", 2)
WAIT_S = 10


async def test_a_state_on_the_way_waits_for_the_end_and_both_are_one_message() -> None:
    feed = ChangeFeed()
    watcher = feed.subscribe("")
    feed.publish_nowait("issue", {KEY: None}, passing=True)
    waiting = asyncio.ensure_future(watcher.wait_changed())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    feed.publish_nowait("issue", {OTHER: None}, passing=False)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done()
    assert watcher.take() == ({KEY: None, OTHER: None}, False)


async def test_a_state_that_nothing_follows_is_told_all_the_same_and_each_time() -> None:
    feed = ChangeFeed()
    watcher = feed.subscribe("issue")
    for _ in range(2):
        feed.publish_nowait("issue", {KEY: None}, passing=True)
        await asyncio.wait_for(watcher.wait_changed(), WAIT_S)
        assert watcher.take() == ({KEY: None}, False)


async def test_what_was_taken_along_wakes_nobody_again() -> None:
    feed = ChangeFeed()
    watcher, later = feed.subscribe("issue"), feed.subscribe("later")
    feed.publish_nowait("issue", {KEY: None}, passing=True)
    feed.publish_nowait("issue", {KEY: None}, passing=False)
    watcher.take()
    waiting = asyncio.ensure_future(watcher.wait_changed())
    feed.publish_nowait("later", {KEY: None}, passing=True)  # due behind what was taken along
    await asyncio.wait_for(later.wait_changed(), WAIT_S)
    assert not waiting.done()
    waiting.cancel()
