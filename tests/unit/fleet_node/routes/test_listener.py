"""The probe listener's port and certificate."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509

from fleet.clock import SystemClock
from fleet.tls_certificates import make_self_signed
from fleet_node.routes import listener
from fleet_node.routes.leaf import load_or_make_leaf
from fleet_node.routes.peer_channels import CERTIFICATE_NAME
from fleet_node.routes.walk_rules import WalkState
from tests.unit.fleet_node.routes.mesh import GENERATION, ROUTE, TIMEOUT_S, MeshNode, mesh

NOW = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)


def validity(path: Path, now: dt.datetime) -> tuple[int, int]:
    """Years in which a certificate begins and ends."""
    certificate = x509.load_pem_x509_certificate(load_or_make_leaf(path, now).certificate_pem)
    return certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year


def test_a_certificate_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "probe.pem"
    leaf = load_or_make_leaf(path, NOW)
    assert load_or_make_leaf(path, NOW) == leaf
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert leaf.is_pair


@pytest.mark.parametrize(
    ("year", "ends"), [(1970, 2055), (2026, 2056), (2100, 2130), (9999, 9999)], ids=["unset", "right", "ahead", "far"]
)
def test_no_clock_that_is_wrong_makes_a_certificate_that_others_refuse(tmp_path: Path, year: int, ends: int) -> None:
    assert validity(tmp_path / "probe.pem", dt.datetime(year, 12, 1, tzinfo=dt.UTC)) == (1970, ends)


def test_it_is_renewed_in_its_last_year(tmp_path: Path) -> None:
    path = tmp_path / "probe.pem"
    first = load_or_make_leaf(path, NOW)
    assert load_or_make_leaf(path, NOW + dt.timedelta(days=29 * 365)) == first
    assert load_or_make_leaf(path, NOW + dt.timedelta(days=29 * 365 + 1)) != first


def test_one_that_cannot_be_used_or_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "probe.pem", tmp_path / "other.pem"
    leaf, strange = load_or_make_leaf(path, NOW), load_or_make_leaf(other, NOW)
    for content in (b"", b"noise", leaf.certificate_pem, leaf.certificate_pem + strange.private_key_pem):
        path.write_bytes(content)
        assert load_or_make_leaf(path, NOW).is_pair
    known = load_or_make_leaf(path, NOW)
    path.chmod(0o644)
    assert load_or_make_leaf(path, NOW) != known


async def test_a_node_whose_clock_is_not_set_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = dt.datetime(1971, 1, 1, tzinfo=dt.UTC)
    monkeypatch.setattr(listener, "load_or_make_leaf", lambda path, _: load_or_make_leaf(path, unset))
    async with mesh(tmp_path, "sd") as nodes:
        nodes.route("sd")
        assert (await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)).state is WalkState.ANSWERED


async def test_a_peer_whose_certificate_has_ended_is_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = make_self_signed(CERTIFICATE_NAME, NOW - dt.timedelta(days=900), NOW - dt.timedelta(days=800))
    monkeypatch.setattr(listener, "load_or_make_leaf", lambda path, now: ended)
    async with mesh(tmp_path, "sd") as nodes:
        nodes.route("sd")
        walked = await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)
    assert (walked.state, walked.failure, walked.blamed) == (WalkState.UNREACHABLE, "UNREACHABLE", "")


async def test_a_taken_port_is_shown_and_nothing_is_raised(tmp_path: Path) -> None:
    async with mesh(tmp_path, "d") as nodes:
        second = MeshNode("e", tmp_path)
        second.listener = listener.ProbeListener(
            nodes["d"].endpoint, tmp_path / "e.pem", second.view, second.caller, SystemClock()
        )
        await second.listener.start()
        assert second.listener.bound.startswith(f"not listening on {nodes['d'].endpoint}: ")
        assert second.listener.certificate == b""
        await second.close()


@pytest.mark.parametrize("listen", ["nohost.invalid:1", "127.0.0.1:notaport", "198.51.100.1:0"])
async def test_an_address_that_is_none_of_this_machine_is_shown(tmp_path: Path, listen: str) -> None:
    node = MeshNode("d", tmp_path)
    node.listener = listener.ProbeListener(listen, tmp_path / "d.pem", node.view, node.caller, SystemClock())
    await node.listener.start()
    assert node.listener.bound.startswith("not listening on ")
    await node.close()


async def test_a_folder_that_takes_no_certificate_is_shown(tmp_path: Path) -> None:
    node = MeshNode("d", tmp_path / "missing")
    await node.listener.start()
    assert node.listener.bound == "not listening on 127.0.0.1:0: No such file or directory"
    await node.close()


async def test_it_keeps_its_certificate_and_gives_its_port_back(tmp_path: Path) -> None:
    async with mesh(tmp_path, "d") as nodes:
        was, bound = nodes["d"].listener.certificate, nodes["d"].endpoint
        await nodes["d"].listener.close()
        assert (nodes["d"].listener.certificate, nodes["d"].listener.bound) == (b"", "closed")
        again = listener.ProbeListener(bound, tmp_path / "d.pem", nodes["d"].view, nodes["d"].caller, SystemClock())
        await again.start()
        assert (again.certificate, again.bound) == (was, bound)
        await again.close()
        await again.close()
