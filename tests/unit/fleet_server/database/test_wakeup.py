from fleet_server.database.wakeup import Wakeup


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
