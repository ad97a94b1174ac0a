"""What this machine has seen of the people who decide, beside the profile: as a node keeps it, and for its reason.

A server can withhold what owners signed, and show an older policy and roles that were taken away, all truly signed. Who
then signs "what stands" once more signs what the server chose. So what was verified once is remembered for each context
and pin, and only something newer takes its place.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleet.identity import PrivateFileError, read_private, write_private
from fleet_server.cli.failures import BadProfile

if TYPE_CHECKING:
    from fleet.people import Grant, People
    from fleet.v1 import trust_pb2
    from fleet_server.cli.profile import Context, ProfileFile

_FORMAT = 1


class KnownPeople:
    """The file of one person's machine, 0600; whoever can change it can change the pin in the profile as well.

    Args:
        profile: the file lies beside it, and is written under its lock.
    """

    def __init__(self, profile: ProfileFile) -> None:
        self._profile = profile
        self._path = profile.path.with_suffix(".people.json")

    def of(self, context: Context) -> People:
        """What was seen in a context, verified again under its pin.

        Raises:
            BadProfile: the file cannot be read, or is damaged.
        """
        from google.protobuf.message import DecodeError

        from fleet.people import People, restore
        from fleet.v1 import trust_pb2

        kept = self._load().get(context.name)
        try:
            if not context.name or kept is None or kept["owner_pin"] != context.owner_pin.hex():
                return People(context.cluster_id, context.owner_pin)
            raw = base64.b64decode(kept["statements"], validate=True)
            return restore(context.cluster_id, context.owner_pin, trust_pb2.TrustBundleStatement.FromString(raw))
        except (DecodeError, ValueError, KeyError, TypeError) as error:
            raise self._damaged() from error

    def remember(self, context: Context, people: People) -> None:
        """Keep it for a context of the profile; one of the environment alone remembers nothing.

        Raises:
            BadProfile: it cannot be written.
        """
        from fleet.people import kept_form

        if not context.name:
            return
        statements = base64.b64encode(kept_form(people).SerializeToString(deterministic=True)).decode()
        said = {"owner_pin": people.pin.hex(), "statements": statements}
        with self._profile.locked():
            every = self._load()
            if every.get(context.name) == said:
                return
            content = {"format": _FORMAT, "contexts": {**every, context.name: said}}
            try:
                write_private(self._path, json.dumps(content, indent=2).encode())
            except (PrivateFileError, OSError) as error:
                raise BadProfile(f"cannot write {self._path}: {error}") from error

    def _load(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            found = json.loads(read_private(self._path))
            if found["format"] != _FORMAT or not isinstance(found["contexts"], dict):
                raise ValueError
        except PrivateFileError as error:
            raise BadProfile(str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged() from error
        return dict(found["contexts"])

    def _damaged(self) -> BadProfile:
        return BadProfile(
            f"{self._path} is damaged: it holds what this machine has seen of owners' signatures",
            hint="restore it from a backup; without it (move it away) this machine believes an older policy again",
        )


@dataclass(frozen=True, slots=True)
class Missing:
    """A statement that this machine has seen and the server does not show.

    Args:
        words: for a person.
        statement: by its field in `PutOwnerStatementRequest`.
        ended: the role that it takes away.
    """

    words: str
    statement: dict[str, trust_pb2.Signed]
    ended: Grant | None = None


def withheld(seen: People, shown: People) -> list[Missing]:
    """What this machine has seen and the server does not show, in the order in which it can be taken."""
    lost = seen.owners[len(shown.owners) :]
    missing = [Missing(f"owner {owner.generation}", {"owner": owner.signed}) for owner in lost]
    if seen.policy is not None and (shown.policy is None or shown.policy.signed != seen.policy.signed):
        missing.append(Missing(f"policy {seen.policy.version}", {"policy": seen.policy.signed}))
    for of, grant in seen.grants.items():
        stands = shown.grants.get(of)
        if stands is None or stands.signed != grant.signed:
            over = grant.not_after_ms <= grant.issued_at_ms
            words = f"{'the end of ' if over else ''}{grant.name}'s role {grant.role}"
            missing.append(Missing(words, {"role_grant": grant.signed}, grant if over else None))
    return missing
