"""The state folder of an enrolled node, made without enrolling."""

from pathlib import Path

from fleet.identity import NodeKeys, store_node_keys
from fleet_node.commands.opening import ensure_journal
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, save_membership
from tests.fakes.gateway import CLUSTER, NODE, FakeInstallation


def enrolled_folder(installation: FakeInstallation, path: Path) -> StateFolder:
    """A member of `installation`, whose gateways have started."""
    folder = StateFolder(path)
    store_node_keys(folder.path, NodeKeys.generate())
    ensure_journal(folder.journal, NODE)
    authority_key = installation.authority.public_key
    BundleFile(folder.bundle, cluster_id=CLUSTER, authority_key=authority_key).save(installation.trust_state())
    save_membership(folder.membership, installation.membership())
    return folder
