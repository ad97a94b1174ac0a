"""A server in strict mode from its first start to its second owner, with fleetctl and real signatures."""

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleet import status
from fleet.clock import SystemClock
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.key_file import create_key_file, show_public_key
from fleet.secrets import Secret
from fleet.v1 import admin_pb2, installation_pb2, installation_pb2_grpc, trust_pb2
from fleet_server import bootstrap
from tests.integration.command_line import run_fleetctl
from tests.integration.installation import Installation, Template, server_settings
from tests.integration.operator import Operator
from tests.integration.waiting import eventually

ROOT = Signer.generate()
PASSPHRASE = "correct horse battery"


@pytest.fixture
async def strict(tmp_path: Path, template: Template) -> AsyncIterator[Installation]:
    """A server in strict mode that nobody activated; its template's owner is there, as when strict mode came later."""
    running = Installation(tmp_path, template, strict=True, product_root_key=show_public_key(ROOT.public_key))
    running.owner = Operator(f"127.0.0.1:{running.admin_port}", running.ca_pem, running.owner_token)
    await running.launch()
    await eventually(running._is_listening, "the server listens")
    try:
        yield running
    finally:
        await running.owner.close()
        await running.crash_server()


class Stranger:
    """Calls service Installation without a token."""

    def __init__(self, installation: Installation) -> None:
        self._channel = grpc.aio.secure_channel(
            f"127.0.0.1:{installation.admin_port}", grpc.ssl_channel_credentials(installation.ca_pem)
        )
        self._stub = installation_pb2_grpc.InstallationStub(self._channel)

    async def ask(self, method: str, request: Any, token: str | None = None) -> Any:
        """Call it; refusals are raised."""
        metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        try:
            return await getattr(self._stub, method)(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)


def manifest(installation: Installation, owner: Signer, by: Signer = ROOT) -> trust_pb2.Signed:
    now_ms = installation.clock.now_ms()
    statement = trust_pb2.ActivationStatement(
        installation_id=installation.server.trust.installation_id,
        first_owner_key=owner.public_key,
        issued_at_ms=now_ms,
        not_after_ms=now_ms + 86_400_000,
    )
    return by.sign(Domain.ACTIVATION, statement.SerializeToString())


@pytest.fixture
async def stranger(strict: Installation) -> AsyncIterator[Stranger]:
    """Somebody without a token."""
    made = Stranger(strict)
    yield made
    await made.close()


async def test_before_activation_operators_and_nodes_are_refused_and_after_it_served(
    strict: Installation, stranger: Stranger
) -> None:
    for method, request in (("WhoAmI", admin_pb2.WhoAmIRequest()), ("ListNodes", admin_pb2.ListNodesRequest())):
        with pytest.raises(Refusal, match="sign-activation") as caught:
            await strict.owner.ask(method, request)
        assert caught.value.reason is Reason.NOT_ACTIVATED
    async with grpc.aio.secure_channel(strict.gateway, grpc.ssl_channel_credentials(strict.ca_pem)) as channel:
        enroll: Any = channel.unary_unary("/fleet.v1.Gateway/Enroll")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await enroll(b"", timeout=20)
    refusal = status.decode(refused.value)
    assert refusal.reason is Reason.NOT_ACTIVATED
    assert refusal.retry_after_s == 30

    view = await stranger.ask("GetInstallation", installation_pb2.GetInstallationRequest())
    assert not view.active
    assert view.strict
    with pytest.raises(Refusal, match="not signed by the product root"):
        request = installation_pb2.ActivateRequest(manifest=manifest(strict, ROOT, by=Signer.generate()))
        await stranger.ask("Activate", request)
    request = installation_pb2.ActivateRequest(manifest=manifest(strict, Signer.generate()))
    view = await stranger.ask("Activate", request)
    assert view.active
    await strict.owner.ask("WhoAmI", admin_pb2.WhoAmIRequest())
    node = await strict.add_node("n-1")
    await node.stop()


async def test_an_owner_without_a_grant_makes_no_owner_whatever_stands_in_the_database(
    strict: Installation, stranger: Stranger
) -> None:
    await stranger.ask("Activate", installation_pb2.ActivateRequest(manifest=manifest(strict, Signer.generate())))
    make = admin_pb2.CreateOperatorRequest(name="eve", role="owner")
    with pytest.raises(Refusal, match="platform admins") as caught:
        await strict.owner.ask("CreateOperator", make)
    assert caught.value.metadata["needed_grant"] == "platform-admin"
    mine = (await strict.owner.ask("ListOperators", admin_pb2.ListOperatorsRequest())).operators[0].operator_id
    forged = trust_pb2.PlatformRoleGrantStatement(
        installation_id=strict.server.trust.installation_id,
        operator_id=mine,
        role="platform-admin",
        issued_at_ms=1,
        not_after_ms=2**62,
    )
    signed = Signer.generate().sign(Domain.PLATFORM_GRANT, forged.SerializeToString())
    with contextlib.closing(sqlite3.connect(strict.database_file)) as database, database:
        database.execute(
            "INSERT INTO platform_role_grants VALUES (?, ?, ?, 0)",
            (b"x" * 32, forged.installation_id, signed.SerializeToString()),
        )
        database.execute("UPDATE operators SET role = 'platform-admin' WHERE 0 = 1")
    with pytest.raises(Refusal, match="platform admins"):
        await strict.owner.ask("CreateOperator", make)
    await strict.owner.ask("CreateOperator", admin_pb2.CreateOperatorRequest(name="ben", role="operator"))


async def test_a_flood_and_large_requests_are_refused(strict: Installation, stranger: Stranger) -> None:
    large = trust_pb2.Signed(statement=bytes(20_000))
    with pytest.raises(Refusal) as caught:
        await stranger.ask("Activate", installation_pb2.ActivateRequest(manifest=large))
    assert caught.value.reason is Reason.FRAME_TOO_LARGE
    cluster = trust_pb2.GetTrustChainRequest(cluster_id=strict.server.trust.cluster_id)
    for method, request in (
        ("GetInstallation", installation_pb2.GetInstallationRequest()),
        ("GetTrustChain", cluster),
    ):
        answers = await asyncio.gather(*(stranger.ask(method, request) for _ in range(60)), return_exceptions=True)
        reasons = {answer.reason for answer in answers if isinstance(answer, Refusal)}
        assert reasons == {Reason.OVERLOADED}


async def test_who_administers_it_is_told_to_operators_alone(strict: Installation, stranger: Stranger) -> None:
    owner = Signer.generate()
    answer = await stranger.ask("Activate", installation_pb2.ActivateRequest(manifest=manifest(strict, owner)))
    claim = trust_pb2.OwnerClaimStatement(
        installation_id=answer.installation_id,
        challenge=answer.challenge,
        operator_id="op-" + "a" * 16,
        operator_name="ada",
        issued_at_ms=strict.clock.now_ms(),
    )
    signed = owner.sign(Domain.OWNER_CLAIM, claim.SerializeToString())
    made = await stranger.ask("ClaimOwner", installation_pb2.ClaimOwnerRequest(claim=signed))
    get = installation_pb2.GetInstallationRequest()
    for token in (None, "fop1." + "A" * 64):
        answer = await stranger.ask("GetInstallation", get, token)
        assert answer.owner_claimed
        assert (answer.owner_operator_id, answer.owner_operator_name, list(answer.grants)) == ("", "", [])
    for _ in range(40):  # more than strangers may ask
        answer = await stranger.ask("GetInstallation", get, made.token)
        assert answer.owner_operator_name == "ada"


class Fleetctl:
    """fleetctl as a process with a profile of its own."""

    def __init__(self, folder: Path) -> None:
        self._environment = {**os.environ, "FLEETCTL_PROFILE": str(folder / "profile.toml"), "NO_COLOR": "1"}
        self._passphrase = folder / "passphrase"
        self._passphrase.write_text(PASSPHRASE + "\n")
        self._passphrase.chmod(0o600)

    async def __call__(self, *words: object, code: int = 0) -> str:
        """Standard output; standard error when it failed as it should."""
        ended, out, err = await run_fleetctl(self._environment, *words)
        assert ended == code, err
        assert PASSPHRASE not in out + err
        return out if code == 0 else err

    async def signed(self, *words: object, code: int = 0) -> str:
        """With the passphrase."""
        return await self(*words, "--passphrase-file", self._passphrase, code=code)


async def test_from_an_empty_folder_to_a_second_platform_admin(tmp_path: Path) -> None:
    """Every step of docs/operations/activate.md."""
    fleetctl = Fleetctl(tmp_path)
    root_key = (await fleetctl.signed("root", "keygen", tmp_path / "root.key")).strip()
    owner = create_key_file(tmp_path / "owner.key", lambda: Secret(PASSPHRASE), scrypt_cost=2**10)  # made as the root's
    owner_key = show_public_key(owner.public_key)
    template = Template(tmp_path / "made", "")
    settings = strict_settings(template.data, root_key)
    made = await bootstrap.init(settings, owner="owner", clock=SystemClock())
    assert made.owner_token is None
    running = Installation(tmp_path, template, strict=True, product_root_key=root_key)
    reach = ["--server", f"127.0.0.1:{running.admin_port}", "--ca-file", running.data / "tls" / "ca.crt"]
    await running.launch()
    try:
        await eventually(running._is_listening, "the server listens")
        waiting = json.loads(await fleetctl("installation", "status", *reach, "-o", "json"))
        assert waiting["active"] is False
        sign = ["root", "sign-activation", "--key", tmp_path / "root.key", "--first-owner-key", owner_key]
        installation = ["--installation", made.installation_id]
        await fleetctl.signed(*sign, *installation, "--output-file", tmp_path / "a")
        assert "active" in await fleetctl("installation", "activate", tmp_path / "a", *reach)

        claim = ["installation", "claim", "--name", "ada", *installation, *reach]
        unnamed = [word for word in claim if word not in installation]
        asked = await fleetctl.signed(*unnamed, "--key", tmp_path / "owner.key", code=2)
        assert made.installation_id in asked
        another = ["--installation", "i-" + "0" * 32]
        refused = await fleetctl.signed(*unnamed, *another, "--key", tmp_path / "owner.key", code=3)
        assert "nothing was signed" in refused
        stranger = await fleetctl.signed(*claim, "--key", tmp_path / "root.key", code=3)
        assert "not signed by the first owner" in stranger
        await fleetctl.signed(*claim, "--key", tmp_path / "owner.key", "--output-file", tmp_path / "ada.token")
        await fleetctl("login", *reach[1:], "--token-file", tmp_path / "ada.token")
        await fleetctl("operators", "create", "ben", "--role", "owner", "--output-file", tmp_path / "ben.token")
        operators = json.loads(await fleetctl("operators", "list", "-o", "json"))
        ben = next(each["operator_id"] for each in operators if each["name"] == "ben")
        other = ["--context", "ben"]
        await fleetctl("login", *reach[1:], "--token-file", tmp_path / "ben.token", *other)
        refused = await fleetctl("operators", "create", "eve", "--role", "owner", *other, code=3)
        assert "platform admins" in refused
        grant = ["root", "sign-grant", "--key", tmp_path / "root.key", "--operator", ben, "--name", "ben"]
        await fleetctl.signed(*grant, *installation, "--output-file", tmp_path / "g")
        await fleetctl("installation", "grant", tmp_path / "g", *other)
        await fleetctl("operators", "create", "eve", "--role", "owner", *other)
        assert "ben" in await fleetctl("installation", "status")
        told = json.loads(await fleetctl("installation", "status", *reach, "-o", "json"))
        assert told["owner_claimed"], told
        assert not {"grants", "owner_operator_id", "owner_operator_name"} & {
            key for key, value in told.items() if value
        }
        assert "log in to see who" in await fleetctl("installation", "status", *reach)

        # The token was lost: neither the name nor the id has to be known.
        lost = ["installation", "claim", *installation, *reach, "--key", tmp_path / "owner.key"]
        await fleetctl.signed(*lost, "--output-file", tmp_path / "ada2.token")
        await fleetctl("login", *reach[1:], "--token-file", tmp_path / "ada2.token")
        again = json.loads(await fleetctl("operators", "list", "-o", "json"))
        assert [each["name"] for each in again].count("ada") == 1
    finally:
        await running.crash_server()


def strict_settings(data: Path, root_key: str) -> Any:
    """Settings for `init` of a strict installation."""
    return server_settings(data, 1, 2, strict=True, product_root_key=root_key)
