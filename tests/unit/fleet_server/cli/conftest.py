"""A logged-in fleetctl and the server that it talks to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from fleet.envelope import Domain, Signer
from fleet.v1 import admin_pb2, trust_pb2
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.profile import Context, ProfileFile
from fleet_server.cli.root import fleetctl
from tests.fakes.tls import FakeAuthority
from tests.unit.fleet_server.cli.fake_admin import FakeAdmin, serve

NOW_MS = 1_790_000_000_000
AUTHORITY = Signer.from_private_bytes(b"\x05" * 32)
TOKEN = "fop1.the-operators-secret"


class Person(Invocation):
    """Someone sits at the terminal."""

    @property
    def is_interactive(self) -> bool:
        return True


@dataclass
class Fleetctl:
    """Runs fleetctl in this process against the fake server."""

    server: str
    fake: FakeAdmin
    folder: Path
    ca_pem: bytes
    slept_s: list[float] = field(default_factory=list)

    @property
    def profile(self) -> ProfileFile:
        return ProfileFile(self.folder / "profile.toml")

    @property
    def ca_file(self) -> str:
        path = self.folder / "ca.pem"
        path.write_bytes(self.ca_pem)
        return str(path)

    @property
    def environment(self) -> dict[str, str]:
        return {"FLEETCTL_PROFILE": str(self.profile.path)}

    def log_in(self, **changes: Any) -> Context:
        """Write the profile that `login` would write."""
        values: dict[str, Any] = {
            "name": "default",
            "server": self.server,
            "ca_pem": self.ca_pem.decode(),
            "token": TOKEN,
            "cluster_id": "cluster-1",
            "authority_key": AUTHORITY.public_key,
        }
        context = Context(**{**values, **changes})
        self.profile.update(lambda profile: profile.with_context(context, make_current=True))
        return context

    def run(
        self, *args: str, stdin: str | bytes = "", person: bool = False, env: dict[str, str] | None = None
    ) -> Result:
        invocation = (Person if person else Invocation)(now_ms=lambda: NOW_MS, sleep=self.slept_s.append)
        return CliRunner().invoke(
            fleetctl, args, input=stdin, env={**self.environment, **(env or {})}, obj=invocation, prog_name="fleetctl"
        )

    def json(self, *args: str) -> Any:
        result = self.run(*args, "--output", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("FLEETCTL_") or name in ("NO_COLOR", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def fake_admin_server(tls_authority: FakeAuthority) -> Iterator[tuple[FakeAdmin, int]]:
    leaf = tls_authority.issue()
    fake = FakeAdmin()
    chain = leaf.cert_pem + tls_authority.cert_pem
    server, port = serve(fake, grpc.ssl_server_credentials([(leaf.key_pem, chain)]))
    yield fake, port
    server.stop(0).wait()


@pytest.fixture
def ctl(fake_admin_server: tuple[FakeAdmin, int], tls_authority: FakeAuthority, tmp_path: Path) -> Fleetctl:
    """fleetctl with a profile of its own, logged in."""
    fake, port = fake_admin_server
    fake.reset()
    fake.answers["WhoAmI"] = whoami()
    fake.answers["ListAuthorities"] = authorities(AUTHORITY)
    folder = tmp_path / "config"
    folder.mkdir(mode=0o700)
    made = Fleetctl(f"127.0.0.1:{port}", fake, folder, tls_authority.cert_pem)
    made.log_in()
    return made


def authorities(*signers: Signer, cluster_id: str = "cluster-1") -> admin_pb2.ListAuthoritiesResponse:
    """The answer of a cluster whose authority was rotated from each of `signers` to the next."""
    answer = admin_pb2.ListAuthoritiesResponse(cluster_id=cluster_id)
    for generation, signer in enumerate(signers, 1):
        statement = trust_pb2.TrustBundleStatement(
            cluster_id=cluster_id, generation=generation, number=1, authority_key=signer.public_key
        )
        bundle = signer.sign(Domain.TRUST_BUNDLE, statement.SerializeToString())
        if generation > 1:
            signers[generation - 2].add(bundle, Domain.TRUST_BUNDLE)
        answer.chain.append(bundle)
        answer.authorities.add(
            generation=generation, public_key=signer.public_key, created_at_ms=NOW_MS, nodes=generation
        )
    return answer


def whoami(role: str = "owner", **changes: Any) -> admin_pb2.WhoAmIResponse:
    values: dict[str, Any] = {
        "operator": "ada",
        "role": role,
        "cluster_id": "cluster-1",
        "cluster_name": "plant",
        "server_version": "0.1.0",
        "replica_id": "replica-a",
        "authority_key": AUTHORITY.public_key,
    }
    return admin_pb2.WhoAmIResponse(**{**values, **changes})
