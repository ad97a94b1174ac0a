"""What nodes tell of routes at their hello and later: listeners, versions of their parts, refusals."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2, route_pb2
from fleet_server.routes.config_store import MAX_VERSION
from fleet_server.routes.listener_rules import checked_listener
from fleet_server.routes.record import ConfigRecord
from tests.unit.fleet_server.routes.mesh import Mesh, certificate, listener


async def config(mesh: Mesh, name: str) -> ConfigRecord:
    """What is kept of a node's part."""
    return (await mesh.routes.get("a-to-b")).configs[mesh.ids[name]]


async def endpoints(mesh: Mesh) -> list[str]:
    """Where `a` is told to probe."""
    return list((await mesh.content("a")).peers[0].probe_endpoints)


async def test_another_listener_is_audited_and_told_to_who_probes_it(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    before = await mesh.version("a")
    mesh.woken.clear()
    await mesh.routes.note_listener(mesh.ids["b"], mesh.epochs["b"], listener("b:7450", name="b"))
    assert (await mesh.version("a"), mesh.woken) == (before, [])  # the same as before
    await mesh.routes.note_listener(mesh.ids["b"], mesh.epochs["b"], listener("[::1]:7451", "b:7450", name="new"))
    assert await endpoints(mesh) == ["[::1]:7451", "b:7450"]
    assert (await mesh.content("a")).peers[0].probe_certificate == certificate("new")
    assert await mesh.version("a") == before + 1
    assert mesh.ids["a"] in mesh.woken
    await mesh.routes.note_listener(mesh.ids["b"], mesh.epochs["b"], None)
    assert await endpoints(mesh) == []
    assert [detail["endpoints"] for detail in await mesh.details("probe_listener.changed")][-2:] == [
        ["[::1]:7451", "b:7450"],
        [],
    ]


async def test_an_older_stream_says_nothing_of_its_node_any_more(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    old = mesh.epochs["b"]
    await mesh.open_stream("b")
    with pytest.raises(Refusal) as refused:
        await mesh.routes.note_listener(mesh.ids["b"], old, listener("evil:1"))
    assert refused.value.reason is Reason.SUPERSEDED
    assert await endpoints(mesh) == ["b:7450"]
    with pytest.raises(Refusal, match="SUPERSEDED"):
        await mesh.routes.note_applied(mesh.ids["b"], old, route_pb2.ConfigApplied(version=2**60, applied=True))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(gateway_pb2.ProbeListener(certificate=certificate()), id="no-endpoint"),
        pytest.param(listener(*[f"h:{port}" for port in range(1, 6)]), id="five-endpoints"),
        pytest.param(listener("unix:/run/x"), id="no-host-and-port"),
        pytest.param(listener("h\n:1"), id="a-control-character"),
        pytest.param(listener("h" * 260 + ":1"), id="a-long-one"),
        pytest.param(gateway_pb2.ProbeListener(endpoints=["h:1"], certificate=b"der"), id="no-certificate"),
        pytest.param(
            gateway_pb2.ProbeListener(endpoints=["h:1"], certificate=certificate() + bytes(4096)), id="a-large-one"
        ),
        pytest.param(
            gateway_pb2.ProbeListener(endpoints=["h:1"], certificate=certificate("p", ec.SECP384R1())), id="p-384"
        ),
    ],
)
def test_a_listener_that_nobody_could_dial_and_pin_is_refused(said: gateway_pb2.ProbeListener) -> None:
    with pytest.raises(Refusal) as refused:
        checked_listener(said)
    assert refused.value.reason is Reason.MALFORMED


async def test_which_version_a_node_runs_is_kept_and_what_it_refused_is_audited(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    await mesh.routes.note_applied(mesh.ids["a"], mesh.epochs["a"], route_pb2.ConfigApplied(version=1, applied=True))
    assert (await config(mesh, "a"))[3:6] == (1, True, "")
    refused = route_pb2.ConfigApplied(version=1, applied=False, reason="FOREIGN\n" + "x" * 300)
    await mesh.routes.note_applied(mesh.ids["a"], mesh.epochs["a"], refused)
    assert (await config(mesh, "a"))[3:6] == (1, False, "FOREIGN" + "x" * 193)
    assert [row.actor for row in await mesh.audited("route.config_refused")] == [f"node:{mesh.ids['a']}"]
    assert [detail["held"] for detail in await mesh.details("route.config_refused")] == [1]


async def test_a_node_that_shows_a_newer_version_is_sent_one_above_it(mesh: Mesh) -> None:
    """The database was restored: without that the node would refuse what it is sent as older."""
    await mesh.connect("a", "b")
    await mesh.routes.note_shown(mesh.ids["a"], mesh.epochs["a"], 1)
    assert await mesh.version("a") == 1
    mesh.woken.clear()
    await mesh.routes.note_shown(mesh.ids["a"], mesh.epochs["a"], 70)
    assert (await mesh.version("a"), mesh.woken) == (71, [mesh.ids["a"]])
    await mesh.routes.note_applied(mesh.ids["a"], mesh.epochs["a"], route_pb2.ConfigApplied(version=70, applied=True))
    assert await mesh.version("a") == 71
    await mesh.routes.note_applied(mesh.ids["a"], mesh.epochs["a"], route_pb2.ConfigApplied(version=99, applied=False))
    assert await mesh.version("a") == 100
    await mesh.routes.note_shown(mesh.ids["a"], mesh.epochs["a"], MAX_VERSION)
    assert await mesh.version("a") == 100
    # One whose routes were all forgotten is told that it has none.
    assert not mesh.routes.concerns(mesh.ids["r"])
    await mesh.routes.note_shown(mesh.ids["r"], mesh.epochs["r"], 5)
    assert (await mesh.version("r"), mesh.routes.concerns(mesh.ids["r"])) == (6, True)
    assert list((await mesh.content("r")).routes) == []
