"""Nodes and databases that are put back to what they were, as the operations pages say."""

import shutil
from pathlib import Path

from fleet.secrets import Secret
from fleet_node.backup.service import back_up, restore
from fleet_node.commands.opening import copy_journal
from fleet_server import bootstrap
from fleet_server.restored import note_restored
from tests.integration.installation import Installation, RunningNode

_PASSPHRASE = Secret("a passphrase for tests")
_COST = 2  # of deriving a key from it, which takes a third of a second where it counts


def back_up_node(node: RunningNode, archive: Path) -> None:
    """Into an archive; the node is stopped."""
    copy = archive.with_suffix(".db")
    copy_journal(node.folder.journal, node.node_id, copy)
    back_up(
        node.folder,
        archive,
        _PASSPHRASE,
        node_id=node.node_id,
        read_journal=copy.read_bytes,
        clock=node.clock,
        cost=_COST,
    )


def restore_node(node: RunningNode, archive: Path) -> None:
    """In place of all that the stopped node has."""
    shutil.rmtree(node.folder.path)
    restore(archive, node.folder.path, _PASSPHRASE, clock=node.clock, cost=_COST)


async def note_database_restored(installation: Installation, why: str) -> None:
    """What `fleet-server db restored` does; the server is stopped."""
    settings = installation.settings
    secrets, url = bootstrap.load_secrets(settings), settings.resolved_database_url()
    await note_restored(url, secrets, installation.clock, why, cluster_name=settings.cluster_name)
