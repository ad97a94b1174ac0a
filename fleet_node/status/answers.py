"""What the running daemon answers on the control socket (`status.protocol`)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from fleet.errors import Refusal
from fleet_node.commands.journal import Journal
from fleet_node.commands.service import CommandService
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import Membership
from fleet_node.enrollment.owner_pin import pinned_owner
from fleet_node.link.credentials import RotationPinnedError
from fleet_node.link.link import Link
from fleet_node.link.trust_store import TrustStore
from fleet_node.status.live import LiveSources, live_status
from fleet_node.status.server import Answer, LongAnswer, Progress


class Answers:
    """Of one daemon.

    Args:
        live: what `status` tells.
    """

    def __init__(
        self,
        live: LiveSources,
        *,
        folder: StateFolder,
        membership: Membership,
        link: Link,
        trust: TrustStore,
        commands: CommandService,
        journal: Journal,
    ) -> None:
        self._live = live
        self._folder = folder
        self._membership = membership
        self._link = link
        self._trust = trust
        self._commands = commands
        self._journal = journal

    def short(self) -> Mapping[str, Answer]:
        """By question; made at once."""
        return {
            "status": self._status,
            "owner": self._read_owner_pin,
            "rotate-identity": partial(self._rotate, identity=True, sealing_key=False),
            "rotate-sealing": partial(self._rotate, identity=False, sealing_key=True),
            "rotate-keys": partial(self._rotate, identity=True, sealing_key=True),
        }

    def long(self) -> Mapping[str, LongAnswer]:
        """By question; these take their time, or leave something to clear away."""
        return {"copy_journal": self._copy_journal}

    async def _status(self) -> Mapping[str, Any]:
        return live_status(self._live)

    async def _read_owner_pin(self) -> Mapping[str, Any]:
        """A person has pinned an owner: no restart is needed."""
        pin = pinned_owner(self._folder.owner_pin, self._membership)
        await self._trust.pin_owner(pin)
        self._commands.tell_owner_pin(pin)
        return {"owner_pin": pin.hex()}

    async def _rotate(self, *, identity: bool, sealing_key: bool) -> Mapping[str, Any]:
        try:
            await self._link.rotate_keys(identity=identity, sealing_key=sealing_key)
        except (Refusal, RotationPinnedError, OSError) as error:
            return {"begun": False, "why": error.detail if isinstance(error, Refusal) else str(error)}
        return {"begun": True, "why": ""}

    async def _copy_journal(self, progress: Progress, afterwards: ExitStack) -> Mapping[str, Any]:
        def between(done: int, of: int) -> None:
            progress.done, progress.of = done, of

        path = self._folder.new_journal_copy()
        afterwards.callback(path.unlink, missing_ok=True)
        await self._journal.copy(path, between)
        return {"path": str(path)}
