"""Step 12: nodes probe each other over a link of the demo's, which is cut: the route finds its way over a relay."""

import time
from typing import Any

from deploy.demo.admin import AdminClient
from deploy.demo.installation import NODES, Installation
from deploy.demo.stage import Stage
from tests.fakes.proxy_thread import FaultProxyThread

_SOURCE, _DESTINATION, _RELAY = NODES
_ROUTE = f"{_SOURCE}-to-{_DESTINATION}"
_INTERVAL_S = 1
_INTERVALS = 3
_WORKS = {"HEALTHY", "DEGRADED"}


def link_of(here: Installation) -> FaultProxyThread:
    """What the route's source will reach its destination over, for as long as the demo stays up."""
    return FaultProxyThread(("127.0.0.1", here.probe_ports[_DESTINATION]))


def cut_and_heal(stage: Stage, here: Installation, admin: AdminClient, link: FaultProxyThread) -> None:
    """A route on its direct path, then over a relay; the decision explains itself."""
    here.lead(_SOURCE, admin.nodes()[_DESTINATION].node_id, link.address)
    here.stop_node(_SOURCE)
    here.start_node(_SOURCE)
    here.wait(lambda: admin.online() == set(NODES), f"{_SOURCE} to come back")
    stage.say(f"{_SOURCE} reaches {_DESTINATION} over a link that this demo holds in its hands.")
    _fleetctl(stage, here, "routes", "create", _SOURCE, _DESTINATION, "--interval", f"{_INTERVAL_S}s")
    _fleetctl(stage, here, "relays", "add", _RELAY)
    here.wait(lambda: _on(admin, ""), "the direct path to be walked")
    here.wait(lambda: _ways(admin).get(_RELAY) == "HEALTHY", f"the way over {_RELAY} to be walked")
    known = {way["state"] for way in _show(stage, here)["candidates"]}
    stage.check(known <= _WORKS, "the direct path works, and the other way was walked before it is needed")

    stage.say("The link is cut now.")
    began_s = time.monotonic()
    link.refuse()
    link.cut()
    here.wait(lambda: _on(admin, _RELAY), f"the path over {_RELAY}")
    intervals = (time.monotonic() - began_s) / _INTERVAL_S
    stage.command("fleetctl", "routes", "explain", _ROUTE)
    explained = _show(stage, here)
    for reason in explained["decision"]["reasons"]:
        stage.say(_by_name(reason["text"], admin), label="because ")
    stage.check(
        intervals <= _INTERVALS,
        f"healed over {_RELAY} after {intervals:.1f} probe intervals (at most {_INTERVALS})",
    )
    lease = explained["lease"]
    stage.check(lease["relay_name"] == _RELAY, f"{_RELAY} relays by lease {lease['lease_id']}, signed for this route")

    link.heal()
    here.wait(lambda: _ways(admin)[""] in _WORKS, "the link to be walked again")
    stage.say("The link is back: the route returns to it once that is worth a switch, 10 ms and a third.")
    picture = here.state / "routes.svg"
    _fleetctl(stage, here, "routes", "graph", "--output-file", here.shown(picture))
    stage.check(picture.exists(), f"{here.shown(picture)} shows it in any browser")


def _fleetctl(stage: Stage, here: Installation, *arguments: str) -> None:
    stage.command("fleetctl", *arguments)
    here.fleetctl(*arguments)


def _by_name(text: str, admin: AdminClient) -> str:
    for name, node in admin.nodes().items():
        text = text.replace(node.node_id, name)
    return text


def _on(admin: AdminClient, relay: str) -> bool:
    route = admin.explain(_ROUTE).route
    return route.state in _WORKS and route.relay_name == relay


def _ways(admin: AdminClient) -> dict[str, str]:
    return {way.relay_name: way.state for way in admin.explain(_ROUTE).candidates}


def _show(stage: Stage, here: Installation) -> dict[str, Any]:
    explained: dict[str, Any] = here.fleetctl("routes", "explain", _ROUTE)
    stage.table(
        ("path", "state", "in use", "rtt", "held out"),
        [
            (
                " > ".join(name for name in (_SOURCE, way["relay_name"], _DESTINATION) if name),
                way["state"],
                "yes" if way["effective"] else "",
                f"{way['rtt_us'] / 1000:.1f} ms" if way["rtt_us"] else "-",
                way["held_out"] or "-",
            )
            for way in explained["candidates"]
        ],
        right=("rtt",),
        whole=("path", "state"),
    )
    return explained
