"""Everything that an installation trusts, taken from its own disk: the worst case that the demo plays."""

from pathlib import Path

from sqlalchemy import create_engine

from fleet.v1 import trust_pb2
from fleet_server.trust import store, tls_store
from fleet_server.trust.keys import KeyVault
from fleet_server.trust.secrets import Secrets, read_key_file
from fleet_server.trust.tls_keys import TlsVault
from tests.fakes.rogue import StolenTrust


def steal_trust(data: Path, cluster_id: str) -> StolenTrust:
    """Read the master key, and unseal authority, command key and TLS leaf with it.

    Args:
        data: the server's data folder.
        cluster_id: the cluster.
    """
    secrets = Secrets(read_key_file(data / "secret.key"))
    vault = KeyVault(secrets)
    engine = create_engine(f"sqlite:///{data / 'fleet.db'}")
    with engine.connect() as connection:
        authority = store.authority(connection, cluster_id)
        keys, _ = vault.open_command_keys(store.keys(connection, cluster_id))
        bundle = store.newest_bundle(connection, cluster_id)
        leaf = TlsVault(secrets).open([], tls_store.leaf(connection, cluster_id)).leaf
    engine.dispose()
    if authority is None or bundle is None or leaf is None:
        raise LookupError("the installation has no authority, no bundle or no certificate yet")
    active = [held.signer for held in keys.values() if held.key.phase == trust_pb2.KEY_PHASE_ACTIVE]
    return StolenTrust(
        cluster_id=cluster_id,
        authority=vault.open_authority(authority),
        command_key=active[0],
        leaf=leaf.pair,
        bundles=(trust_pb2.Signed.FromString(bundle.signed),),
    )
