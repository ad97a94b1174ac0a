"""What the shell is offered for a word, and that it is offered nothing when something is wrong."""

from __future__ import annotations

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, admin_route_pb2, enrollment_pb2, gateway_pb2, trust_pb2
from tests.unit.fleet_server.cli.conftest import Fleetctl
from tests.unit.fleet_server.cli.made import node
from tests.unit.fleet_server.cli.made_routes import relay, route


def offered(ctl: Fleetctl, line: str) -> list[str]:
    """The words that bash is offered for the last word of `line`."""
    words = line.split(" ")
    env = {"_FLEETCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = ctl.run(env=env)
    assert result.stderr == ""
    return [each.removeprefix("plain,") for each in result.stdout.split()]


@pytest.fixture
def fleet(ctl: Fleetctl) -> Fleetctl:
    actions = [gateway_pb2.ActionDescriptor(action=name) for name in ("host.info", "host.processes", "exec.run")]
    driver = gateway_pb2.DriverDescriptor(name="host", actions=actions)
    ctl.fake.answers |= {
        "ListNodes": admin_pb2.ListNodesResponse(nodes=[node(1), node(2)]),
        "GetNode": admin_pb2.GetNodeResponse(node=node(1), drivers=[driver]),
        "ListOperators": admin_pb2.ListOperatorsResponse(
            operators=[admin_pb2.OperatorView(name="ada"), admin_pb2.OperatorView(name="gone", revoked_at_ms=1)]
        ),
        "ListKeys": admin_pb2.ListKeysResponse(
            command_keys=[
                admin_pb2.CommandKeyView(key_id=b"\x3f" * 16, phase=trust_pb2.KEY_PHASE_PREPARED),
                admin_pb2.CommandKeyView(key_id=b"\x3e" * 16, phase=trust_pb2.KEY_PHASE_REVOKED),
            ]
        ),
        "ListRoutes": admin_route_pb2.ListRoutesResponse(routes=[route()]),
        "ListRelays": admin_route_pb2.ListRelaysResponse(relays=[relay()]),
        "ListReplicas": admin_pb2.ListReplicasResponse(replicas=[admin_pb2.ReplicaView(replica_id="replica-a")]),
        "ListJoinTokens": admin_pb2.ListJoinTokensResponse(
            join_tokens=[
                admin_pb2.JoinTokenView(token_id="jt_1", state="ACTIVE"),
                admin_pb2.JoinTokenView(token_id="jt_2", state="USED"),
            ]
        ),
        "ListEnrollments": admin_pb2.ListEnrollmentsResponse(
            enrollments=[admin_pb2.EnrollmentView(name="oven-9", state=enrollment_pb2.ENROLLMENT_STATE_PENDING)]
        ),
    }
    return ctl


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fleetctl nodes wa", ["watch"]),
        ("fleetctl nodes show pre", ["press-1", "press-2"]),
        ("fleetctl drain node ", ["press-1", "press-2"]),
        ("fleetctl commands list --node press-2", ["press-2"]),
        ("fleetctl telemetry history ov", []),
        ("fleetctl run ", ["press-1", "press-2"]),
        ("fleetctl run press-1 host.", ["host.info", "host.processes"]),
        ("fleetctl run press-1 ", ["exec.run", "host.info", "host.processes", "press-2"]),
        ("fleetctl operators revoke ", ["ada"]),
        ("fleetctl keys activate 3", ["3f" * 16]),
        ("fleetctl drain replica re", ["replica-a"]),
        ("fleetctl routes explain pr", ["press-1-to-oven"]),
        ("fleetctl routes create press-1 pre", ["press-1", "press-2"]),
        ("fleetctl relays remove ", ["relay-a"]),
        ("fleetctl join-token revoke jt", ["jt_1"]),
        ("fleetctl enrollments approve ", ["oven-9"]),
        ("fleetctl contexts use ", ["default"]),
        ("fleetctl whoami --context de", ["default"]),
        ("fleetctl login --ca-file ca", ["file,ca"]),
    ],
)
def test_words(fleet: Fleetctl, line: str, words: list[str]) -> None:
    assert offered(fleet, line) == words


def test_the_server_is_asked_for_no_more_than_what_fits(fleet: Fleetctl) -> None:
    offered(fleet, "fleetctl nodes show pre")
    (request,) = fleet.fake.requests("ListNodes")
    assert list(request.selector.patterns) == ["pre*"]
    assert request.page.size == 100


def test_whatever_is_wrong_nothing_is_offered_and_nothing_said(fleet: Fleetctl) -> None:
    fleet.fake.answers["ListNodes"] = Refusal(Reason.OVERLOADED, "later", retry_after_s=9)
    assert offered(fleet, "fleetctl nodes show pre") == []
    assert fleet.slept_s == [], "nobody waits with a finger on the key"
    fleet.log_in(server="127.0.0.1:1")
    assert offered(fleet, "fleetctl nodes show pre") == []
    fleet.profile.path.unlink()
    assert offered(fleet, "fleetctl nodes show pre") == []
