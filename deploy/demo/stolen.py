"""Everything that an installation trusts, taken from its own disk: the worst case that the demo plays."""

from pathlib import Path

from sqlalchemy import create_engine

from fleet.tls import CertifiedKey
from fleet.v1 import trust_pb2
from fleet_server.trust import store
from fleet_server.trust.keys import KeyVault
from fleet_server.trust.secrets import Secrets, read_key_file
from tests.fakes.rogue import StolenTrust

_KEY_BEGINS = b"-----BEGIN PRIVATE KEY-----"


def steal_trust(data: Path, cluster_id: str) -> StolenTrust:
    """Read the master key, unseal authority and command key with it, and take the TLS leaf.

    Args:
        data: the server's data folder.
        cluster_id: the cluster.
    """
    vault = KeyVault(Secrets(read_key_file(data / "secret.key")))
    engine = create_engine(f"sqlite:///{data / 'fleet.db'}")
    with engine.connect() as connection:
        authority = store.authority(connection, cluster_id)
        keys, _ = vault.open_command_keys(store.keys(connection, cluster_id))
        bundle = store.newest_bundle(connection, cluster_id)
    engine.dispose()
    if authority is None or bundle is None:
        raise LookupError("the installation has no authority or no bundle yet")
    active = [held.signer for held in keys.values() if held.key.phase == trust_pb2.KEY_PHASE_ACTIVE]
    certificate, begins, key = (data / "tls" / "leaf.pem").read_bytes().partition(_KEY_BEGINS)
    return StolenTrust(
        cluster_id=cluster_id,
        authority=vault.open_authority(authority),
        command_key=active[0],
        leaf=CertifiedKey(certificate, begins + key),
        bundles=(trust_pb2.Signed.FromString(bundle.signed),),
    )
