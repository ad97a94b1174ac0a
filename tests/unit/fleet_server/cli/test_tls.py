"""`fleetctl tls`, and how fleetctl itself follows a rotation of the TLS CA."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from fleet import tls, tls_certificates
from fleet.envelope import Domain, Signer
from fleet.v1 import admin_pb2, trust_pb2
from fleet_server.cli.profile import Context
from fleet_server.cli.tls_following import proven
from tests.unit.fleet_server.cli.conftest import AUTHORITY, NOW_MS, Fleetctl

NOW = dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC)
CA = tls_certificates.make_ca("old", NOW)
NEW_CA = tls_certificates.make_ca("new", NOW)
SECOND = Signer.from_private_bytes(b"\x06" * 32)
STRANGER = Signer.from_private_bytes(b"\x07" * 32)


def view(
    ca: tls_certificates.CertifiedKey, phase: admin_pb2.TlsCaPhase.ValueType, **fields: Any
) -> admin_pb2.TlsCaView:
    return admin_pb2.TlsCaView(
        sha256=tls.certificate_sha256(ca.certificate_der),
        phase=phase,
        own=True,
        subject="CN=it",
        certificate=ca.certificate_der,
        **fields,
    )


def bundle(
    signer: Signer = AUTHORITY,
    *,
    generation: int = 1,
    number: int = 7,
    before: Signer | None = None,
    cluster_id: str = "cluster-1",
    cas: tuple[bytes, ...] = (NEW_CA.certificate_der,),
    expires_in_ms: int = 1000,
) -> trust_pb2.Signed:
    statement = trust_pb2.TrustBundleStatement(
        cluster_id=cluster_id,
        generation=generation,
        number=number,
        authority_key=signer.public_key,
        tls_ca_der=cas,
        issued_at_ms=NOW_MS - 1000,
        expires_at_ms=NOW_MS + expires_in_ms,
    )
    signed = signer.sign(Domain.TRUST_BUNDLE, statement.SerializeToString())
    if before is not None:
        before.add(signed, Domain.TRUST_BUNDLE)
    return signed


def listed(*cas: admin_pb2.TlsCaView, **fields: Any) -> admin_pb2.ListTlsCasResponse:
    return admin_pb2.ListTlsCasResponse(cas=cas, chain=[bundle()], **fields)


ACTIVE = view(CA, admin_pb2.TLS_CA_PHASE_ACTIVE, nodes=3)
PREPARED = view(NEW_CA, admin_pb2.TLS_CA_PHASE_PREPARED, nodes=1)
LACKING = admin_pb2.TlsCaRollout(sha256=PREPARED.sha256, asked=3, holding=1, away=2, lacking=["press-9"])
COMPLETE = admin_pb2.TlsCaRollout(sha256=PREPARED.sha256, asked=3, holding=3, complete=True)


# -- verbs ------------------------------------------------------------------------------------------------------------
def test_cas_are_listed_with_phase_and_nodes(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListTlsCas"] = listed(ACTIVE, PREPARED)
    first, second = ctl.run("tls", "list").stdout.splitlines()[1:]
    assert first.startswith(ACTIVE.sha256.hex()[:16])
    assert "ACTIVE" in first
    assert first.endswith("3")
    assert "PREPARED" in second
    assert [ca["phase"] for ca in ctl.json("tls", "list")["cas"]] == ["ACTIVE", "PREPARED"]


def test_the_rollout_names_who_lacks_it_and_says_when_the_next_step_is_ready(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListTlsCas"] = listed(ACTIVE, PREPARED, rollouts=[LACKING])
    shown = ctl.run("tls", "rollout")
    assert "1 of 3" in shown.stdout
    assert "press-9" in shown.stdout
    assert "Ready" not in shown.stderr
    ctl.fake.answers["ListTlsCas"] = listed(ACTIVE, PREPARED, rollouts=[COMPLETE])
    assert f"fleetctl tls activate {PREPARED.sha256.hex()[:8]}" in ctl.run("tls", "rollout").stderr
    gone = view(CA, admin_pb2.TLS_CA_PHASE_OUTGOING)
    come = view(NEW_CA, admin_pb2.TLS_CA_PHASE_ACTIVE)
    ctl.fake.answers["ListTlsCas"] = listed(gone, come, rollouts=[COMPLETE])
    assert f"fleetctl tls retire {CA_ID}" in ctl.run("tls", "rollout").stderr
    ctl.fake.answers["ListTlsCas"] = listed(ACTIVE)
    assert "fleetctl tls prepare" in ctl.run("tls", "rollout").stderr


CA_ID = tls.certificate_sha256(CA.certificate_der).hex()[:8]


def test_a_ca_from_outside_is_read_from_its_file(ctl: Fleetctl) -> None:
    ctl.fake.answers["PrepareTlsCa"] = admin_pb2.PrepareTlsCaResponse(ca=PREPARED)
    file = ctl.folder / "company.pem"
    file.write_bytes(NEW_CA.certificate_pem)
    assert ctl.run("tls", "prepare", "--ca-file", str(file)).exit_code == 0
    assert ctl.run("tls", "prepare").exit_code == 0
    brought, own = ctl.fake.requests("PrepareTlsCa")
    assert (brought.certificate, own.certificate) == (NEW_CA.certificate_pem, b"")
    assert ctl.run("tls", "prepare", "--ca-file", str(ctl.folder / "absent")).exit_code != 0


@pytest.mark.parametrize(("verb", "method"), [("activate", "ActivateTlsCa"), ("retire", "RetireTlsCa")])
def test_an_override_says_how_many_it_cuts_off_and_is_asked_about(ctl: Fleetctl, verb: str, method: str) -> None:
    ctl.fake.answers["ListTlsCas"] = listed(ACTIVE, PREPARED, rollouts=[LACKING])
    ctl.fake.answers["ActivateTlsCa"] = admin_pb2.ActivateTlsCaResponse(ca=PREPARED, rollout=LACKING)
    ctl.fake.answers["RetireTlsCa"] = admin_pb2.RetireTlsCaResponse(ca=PREPARED, rollout=LACKING)
    assert ctl.run("tls", verb, CA_ID, "--override", " ").exit_code == 2
    assert ctl.run("tls", verb, CA_ID, "--override", "away").exit_code == 2, "nobody is there to be asked"
    asked = ctl.run("tls", verb, CA_ID, "--override", "away", person=True, stdin="n\n")
    assert "2 nodes would be cut off" in asked.output
    assert ctl.fake.requests(method) == []
    assert ctl.run("tls", verb, CA_ID, "--override", "away", "--yes").exit_code == 0
    assert ctl.run("tls", verb, CA_ID).exit_code == 0
    assert [each.override_reason for each in ctl.fake.requests(method)] == ["away", ""]


def test_a_revocation_is_asked_about_and_needs_a_reason(ctl: Fleetctl) -> None:
    ctl.fake.answers["RevokeTlsCa"] = admin_pb2.RevokeTlsCaResponse(ca=view(CA, admin_pb2.TLS_CA_PHASE_REVOKED))
    assert ctl.run("tls", "revoke", CA_ID, "--yes").exit_code == 2
    assert ctl.run("tls", "revoke", CA_ID, "--reason", "leaked").exit_code == 2
    assert ctl.run("tls", "revoke", CA_ID, "--reason", "leaked", "--yes").exit_code == 0
    assert [each.reason for each in ctl.fake.requests("RevokeTlsCa")] == ["leaked"]


def test_the_newest_bundle_that_was_seen_is_remembered_and_only_a_newer_one(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListTlsCas"] = listed(ACTIVE)
    ctl.run("tls", "list")
    assert ctl.profile.load().contexts["default"].newest_bundle == (1, 7)
    for other in (bundle(number=6), bundle(STRANGER, number=9), bundle(number=9, cluster_id="another")):
        ctl.fake.answers["ListTlsCas"] = admin_pb2.ListTlsCasResponse(chain=[other])
        ctl.run("tls", "list")
        assert ctl.profile.load().contexts["default"].newest_bundle == (1, 7)
    assert ctl.profile.load().contexts["default"].ca_pem == ctl.ca_pem.decode(), "what works is left alone"


@pytest.mark.parametrize("verb", [("list",), ("rollout",), ("revoke", CA_ID, "--reason", "leaked", "--yes")])
def test_a_revoked_ca_is_trusted_here_no_longer_either(ctl: Fleetctl, verb: tuple[str, ...]) -> None:
    """Both were trusted while one followed the other: whoever has the key of the old one would be sent the token."""
    mine = ctl.ca_pem.decode()
    ctl.log_in(ca_pem=CA.certificate_pem.decode() + mine)
    revoked = view(CA, admin_pb2.TLS_CA_PHASE_REVOKED)
    ctl.fake.answers["RevokeTlsCa"] = admin_pb2.RevokeTlsCaResponse(ca=revoked)
    ctl.fake.answers["ListTlsCas"] = listed(revoked, PREPARED)
    result = ctl.run("tls", *verb)
    assert result.exit_code == 0, result.output
    assert ctl.profile.load().contexts["default"].ca_pem == mine
    assert "trusted no longer" in result.stderr


def test_nothing_else_is_dropped_and_never_the_last_one(ctl: Fleetctl) -> None:
    """One that is retired may sign what this listener shows behind a CA from outside."""
    for phase, kept in ((admin_pb2.TLS_CA_PHASE_RETIRED, "# by hand\n" + CA.certificate_pem.decode()), (REVOKED, "")):
        pem = kept + ctl.ca_pem.decode()
        ctl.log_in(ca_pem=pem)
        mine = admin_pb2.TlsCaView(
            sha256=tls.certificate_sha256(tls_certificates.pem_to_der(ctl.ca_pem)), phase=REVOKED
        )
        ctl.fake.answers["ListTlsCas"] = listed(view(CA, phase), *([] if kept else [mine]))
        assert ctl.run("tls", "list").exit_code == 0
        assert ctl.profile.load().contexts["default"].ca_pem == pem


REVOKED = admin_pb2.TLS_CA_PHASE_REVOKED


def test_each_step_says_what_comes_next(ctl: Fleetctl) -> None:
    going, come = view(CA, admin_pb2.TLS_CA_PHASE_OUTGOING), view(NEW_CA, admin_pb2.TLS_CA_PHASE_ACTIVE)
    ctl.fake.answers["PrepareTlsCa"] = admin_pb2.PrepareTlsCaResponse(ca=PREPARED)
    ctl.fake.answers["ActivateTlsCa"] = admin_pb2.ActivateTlsCaResponse(ca=come, rollout=COMPLETE)
    ctl.fake.answers["RetireTlsCa"] = admin_pb2.RetireTlsCaResponse(ca=view(CA, admin_pb2.TLS_CA_PHASE_RETIRED))
    ctl.fake.answers["RevokeTlsCa"] = admin_pb2.RevokeTlsCaResponse(ca=view(CA, REVOKED))
    ctl.fake.answers["ListTlsCas"] = listed(going, come)
    file = ctl.folder / "company.pem"
    file.write_bytes(NEW_CA.certificate_pem)
    for args, expected in (
        (["prepare"], [f"fleetctl tls activate {PREPARED.sha256.hex()[:8]}"]),
        (["prepare", "--ca-file", str(file)], ["outside.pem", "tls_terminator_leaf_sha256"]),
        (["activate", CA_ID], [f"fleetctl tls retire {CA_ID}", "3 of 3 nodes"]),
        (["retire", CA_ID], ["FLEETCTL_CA_FILE", "ca.crt"]),
        (["revoke", CA_ID, "--reason", "leaked", "--yes"], ["fleetctl join-token revoke", "fleetctl tls list"]),
    ):
        said = ctl.run("tls", *args).stderr
        assert all(each in said for each in expected), said
        assert "Next" not in ctl.run("tls", *args, "--output", "json").stderr


# -- what a chain proves to a fleetctl that trusts no certificate it is shown ------------------------------------------
CONTEXT = Context(
    name="default",
    server="gateway.example:7444",
    ca_pem=CA.certificate_pem.decode(),
    token="fop1.secret",
    cluster_id="cluster-1",
    authority_key=AUTHORITY.public_key,
    newest_bundle=(1, 5),
)
STEP = bundle(SECOND, generation=2, number=1, before=AUTHORITY)


@pytest.mark.parametrize(
    ("chain", "newest_authority", "version"),
    [
        ([bundle()], b"", (1, 7)),
        ([bundle(number=5)], b"", (1, 5)),
        ([bundle(number=1), STEP, bundle(SECOND, generation=2, number=3)], SECOND.public_key, (2, 3)),
    ],
)
def test_a_chain_from_the_pinned_authority_proves_the_new_cas(
    chain: list[trust_pb2.Signed], newest_authority: bytes, version: tuple[int, int]
) -> None:
    found = proven(CONTEXT, chain, NOW_MS)
    assert found is not None
    assert tls_certificates.pem_to_der(found.ca_pem.encode()) == NEW_CA.certificate_der
    assert (found.newest_authority, found.newest_bundle, found.token) == (newest_authority, version, CONTEXT.token)


REFUSED = {
    "nothing": [],
    "a stranger's": [bundle(STRANGER)],
    "another cluster's": [bundle(cluster_id="another")],
    "older than the newest that was seen": [bundle(number=4)],
    "ended": [bundle(expires_in_ms=0)],
    "without a CA": [bundle(cas=())],
    "a step that the old authority did not sign": [bundle(number=1), bundle(SECOND, generation=2, number=1)],
    "a generation skipped": [bundle(number=1), bundle(SECOND, generation=3, number=1, before=AUTHORITY)],
}


@pytest.mark.parametrize("chain", REFUSED.values(), ids=REFUSED.keys())
def test_a_chain_that_proves_nothing_changes_nothing(chain: list[trust_pb2.Signed]) -> None:
    assert proven(CONTEXT, chain, NOW_MS) is None


def test_a_chain_that_does_not_lead_over_the_newest_authority_seen_proves_nothing() -> None:
    """Whoever got hold of an old authority's key cannot lead fleetctl another way."""
    assert proven(replace(CONTEXT, newest_authority=SECOND.public_key), [bundle(number=9)], NOW_MS) is None
