"""The profile file: which servers this person works with, and what fleetctl pinned of each.

It holds operator tokens, so it is 0600 and refused when it is not. The CA, the cluster id and the authority key are
pinned at login: a server that was replaced later is noticed. The newest audit checkpoint that `audit verify` saw is
remembered here too, so that a server cannot show an older history (docs/protocol.md, "Audit").
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fleet.audit_chain import CheckpointMark
from fleet.identity import PrivateFileError, private_folder, read_private, write_private
from fleet_server.cli.failures import BadProfile
from fleet_server.cli.operator_token import token_of_environment

DEFAULT_CONTEXT = "default"
_MAX_PROFILE_BYTES = 1 << 20
_PROFILE_KEYS = ("current", "contexts")
_REPAIR = "repair it, or move the file away and run `fleetctl login SERVER`"
_ELSEWHERE = "see that this user may read and write there, or name another file in FLEETCTL_PROFILE"


@dataclass(frozen=True, slots=True)
class Context:
    """One server as this person knows it.

    `authority_key` is the raw Ed25519 public key of the cluster's first authority, `newest_authority` of the newest
    that was seen to follow it, `newest_bundle` the version (generation, number) of the newest bundle seen; `owner_pin`
    the SHA-256 of the owner's; empty when not known. The token never prints. `owner_key_file` and `key_file` are where
    the owner's and one's own private key lie.
    """

    name: str
    server: str
    ca_pem: str = field(repr=False)
    token: str = field(repr=False)
    cluster_id: str = ""
    authority_key: bytes = b""
    owner_pin: bytes = b""
    owner_key_file: str = ""
    key_file: str = ""
    checkpoint: CheckpointMark | None = None
    newest_authority: bytes = b""
    newest_bundle: tuple[int, int] = (0, 0)


_CONTEXT_KEYS = tuple(known.name for known in fields(Context) if known.name != "name")


@dataclass(frozen=True, slots=True)
class Profile:
    """All contexts of a person and the one in use."""

    current: str = DEFAULT_CONTEXT
    contexts: Mapping[str, Context] = field(default_factory=dict)

    def with_context(self, context: Context, *, make_current: bool) -> Profile:
        """This profile with `context` added or replaced."""
        return Profile(
            current=context.name if make_current else self.current,
            contexts={**self.contexts, context.name: context},
        )

    def without_context(self, name: str) -> Profile:
        """This profile with `name` forgotten."""
        left = {key: context for key, context in self.contexts.items() if key != name}
        current = self.current if self.current in left else next(iter(left), DEFAULT_CONTEXT)
        return Profile(current=current, contexts=left)


class ProfileFile:
    """The profile on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> ProfileFile:
        """FLEETCTL_PROFILE, or fleetctl/profile.toml under XDG_CONFIG_HOME or ~/.config."""
        named = environment.get("FLEETCTL_PROFILE")
        if named:
            return cls(Path(named).expanduser().resolve())
        base = environment.get("XDG_CONFIG_HOME")
        folder = Path(base) if base else Path.home() / ".config"
        return cls((folder / "fleetctl" / "profile.toml").resolve())  # a link to one's own file elsewhere is welcome

    def load(self) -> Profile:
        """Read it; an absent file is an empty profile.

        Raises:
            BadProfile: open to others, not TOML (the line is named), or a field is missing, wrong or unknown.
        """
        try:
            if not self.path.exists():
                return Profile()
            raw = read_private(self.path)
        except PrivateFileError as error:
            raise _unusable(error) from error
        except OSError as error:
            raise BadProfile(f"cannot read {self.path}: {error.strerror}", hint=_ELSEWHERE) from error
        if len(raw) > _MAX_PROFILE_BYTES:
            raise BadProfile(f"{self.path} has {len(raw)} bytes: that is no profile", hint=_REPAIR)
        try:
            document = tomllib.loads(raw.decode())
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, a thousand brackets
            raise BadProfile(f"{self.path} is not TOML: {error}", hint=_REPAIR) from error
        return _parse(document, self.path)

    def update(self, change: Callable[[Profile], Profile]) -> Profile:
        """Read, change and write it under a lock, so that two runs of fleetctl lose nothing of each other.

        Raises:
            BadProfile: it cannot be read or written.
        """
        try:
            if not self.path.parent.exists():
                private_folder(self.path.parent)
            with self.locked():
                profile = change(self.load())
                write_private(self.path, _render(profile).encode())
        except PrivateFileError as error:
            raise _unusable(error) from error
        except OSError as error:
            raise BadProfile(f"cannot write {self.path}: {error.strerror}", hint=_ELSEWHERE) from error
        return profile

    def remember(self, context_name: str, **changes: Any) -> None:
        """Change fields of a context; nothing happens when the context is not in the profile."""

        def change(profile: Profile) -> Profile:
            context = profile.contexts.get(context_name)
            if context is None:
                return profile
            return profile.with_context(replace(context, **changes), make_current=False)

        self.update(change)

    def remember_checkpoint(self, context_name: str, mark: CheckpointMark) -> None:
        """Keep `mark` unless a newer one is there already."""

        def change(profile: Profile) -> Profile:
            context = profile.contexts.get(context_name)
            if context is None or (context.checkpoint and context.checkpoint.number >= mark.number):
                return profile
            return profile.with_context(replace(context, checkpoint=mark), make_current=False)

        self.update(change)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of fleetctl from writing what lies here."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def context_in_force(file: ProfileFile, name: str | None, environment: Mapping[str, str]) -> Context:
    """The context that a verb works with: from the profile, with FLEETCTL_SERVER, _CA_FILE, _TOKEN and _TOKEN_FILE
    over it.

    Raises:
        BadProfile: nothing to connect with, or settings that do not fit each other.
    """
    profile = file.load()
    wanted = name or environment.get("FLEETCTL_CONTEXT") or profile.current
    context = profile.contexts.get(wanted)
    server = environment.get("FLEETCTL_SERVER")
    ca_file = environment.get("FLEETCTL_CA_FILE")
    token = token_of_environment(environment)
    if context is None:
        if server and ca_file and token:
            return Context(name="", server=parse_server(server), ca_pem=read_ca_file(ca_file), token=token)
        raise _not_logged_in(profile, wanted, file.path)
    if ca_file and not token:
        # The profile's token is for the server behind the pinned CA; it must not travel to whoever another CA vouches
        # for.
        raise BadProfile(
            "FLEETCTL_CA_FILE is set without a token", hint="set FLEETCTL_TOKEN or FLEETCTL_TOKEN_FILE beside it"
        )
    if ca_file:
        context = replace(
            context, name="", ca_pem=read_ca_file(ca_file), cluster_id="", authority_key=b"", checkpoint=None
        )
    return replace(context, server=parse_server(server) if server else context.server, token=token or context.token)


def read_ca_file(path: str) -> str:
    """The PEM text of a CA file.

    Raises:
        BadProfile: it cannot be read or holds no certificate.
    """
    hint = "give the server's `tls/ca.crt`: `fleet-server init` names it"
    try:
        text = Path(path).read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise BadProfile(f"cannot read the CA file {path}: {error.strerror}", hint=hint) from error
    if "-----BEGIN CERTIFICATE-----" not in text or not text.isascii():
        raise BadProfile(f"{path} holds no certificate in PEM form", hint=hint)
    return text


def parse_server(text: str) -> str:
    """ "host", "host:port" or "[ipv6]:port" as "host:port"; the port is the admin listener's default when left out.

    Raises:
        BadProfile: not an address.
    """
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, "7444"
    if (
        not host
        or not port.isdecimal()
        or not 0 < int(port) < 65_536
        or "/" in host
        or (":" in host and host[0] != "[")
    ):
        raise BadProfile(f"{text!r} is not a server address", hint="write host:port, for instance gateway.example:7444")
    return f"{host}:{port}"


def _unusable(error: PrivateFileError) -> BadProfile:
    """What is wrong with owner or mode names its own repair; what the system refuses does not."""
    return BadProfile(str(error), hint=_ELSEWHERE if isinstance(error.__cause__, OSError) else "")


def _not_logged_in(profile: Profile, wanted: str, path: Path) -> BadProfile:
    if profile.contexts:
        known = ", ".join(sorted(profile.contexts))
        return BadProfile(
            f"the profile {path} has no context {wanted!r}", hint=f"contexts: {known}; see `fleetctl contexts list`"
        )
    return BadProfile(
        f"not logged in: {path} {'holds no context' if path.exists() else 'is not there'}",
        hint="run `fleetctl login SERVER`, or set FLEETCTL_SERVER, FLEETCTL_CA_FILE and FLEETCTL_TOKEN_FILE",
    )


def _parse(document: Mapping[str, object], path: Path) -> Profile:
    where = f"{path}: "
    _refuse_unknown(document, _PROFILE_KEYS, where)
    contexts: dict[str, Context] = {}
    tables = document.get("contexts", {})
    if not isinstance(tables, dict):
        raise BadProfile(f"{where}`contexts` is not a table", hint=_REPAIR)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise BadProfile(f"{where}[contexts.{name}] is not a table", hint=_REPAIR)
        contexts[name] = _parse_context(name, table, f"{where}[contexts.{name}] ")
    return Profile(current=_text(document, "current", where, DEFAULT_CONTEXT), contexts=contexts)


def _parse_context(name: str, table: Mapping[str, object], where: str) -> Context:
    _refuse_unknown(table, _CONTEXT_KEYS, where)
    checkpoint: CheckpointMark | None = None
    kept = table.get("checkpoint")
    if kept is not None:
        if not isinstance(kept, dict) or not isinstance(kept.get("number"), int):
            raise BadProfile(f"{where}checkpoint needs a number and a sha256", hint=_REPAIR)
        checkpoint = CheckpointMark(kept["number"], _hex(kept, "sha256", where))
    try:
        server = parse_server(_text(table, "server", where))
    except BadProfile as error:
        raise BadProfile(f"{where}{error.message}", hint=error.hint) from error
    return Context(
        name=name,
        server=server,
        ca_pem=_text(table, "ca_pem", where),
        token=_text(table, "token", where),
        cluster_id=_text(table, "cluster_id", where, ""),
        authority_key=_hex(table, "authority_key", where),
        newest_authority=_hex(table, "newest_authority", where),
        newest_bundle=_version(table, "newest_bundle", where),
        owner_pin=_hex(table, "owner_pin", where),
        owner_key_file=_text(table, "owner_key_file", where, ""),
        key_file=_text(table, "key_file", where, ""),
        checkpoint=checkpoint,
    )


def _refuse_unknown(table: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """A misspelt pin would be no pin, and what a newer fleetctl pinned would be lost at the next write."""
    for key in table:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"{_REPAIR}, or use the newer fleetctl that wrote it"
            raise BadProfile(f"{where}`{key}` is not known here", hint=hint)


def _text(table: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise BadProfile(f"{where}`{key}` is missing or not a text", hint=_REPAIR)
    return value


def _version(table: Mapping[str, object], key: str, where: str) -> tuple[int, int]:
    generation, separator, number = _text(table, key, where, "0.0").partition(".")
    if not separator or not (generation + number).isdecimal():
        raise BadProfile(f"{where}`{key}` is no version of a bundle", hint=_REPAIR)
    return int(generation), int(number)


def _hex(table: Mapping[str, object], key: str, where: str) -> bytes:
    text = _text(table, key, where, "")
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise BadProfile(f"{where}`{key}` is not hexadecimal", hint=_REPAIR) from error
    if value and len(value) != 32:
        raise BadProfile(f"{where}`{key}` has {len(value)} bytes instead of 32", hint=_REPAIR)
    return value


def _render(profile: Profile) -> str:
    lines = ["# Written by fleetctl. Holds operator tokens: keep it 0600.", f"current = {_quote(profile.current)}"]
    for name, context in sorted(profile.contexts.items()):
        lines += ["", f"[contexts.{_quote(name)}]"]
        lines += [f"{key} = {_quote(text)}" for key, text in _columns(context) if text]
        if context.checkpoint:
            sha256 = context.checkpoint.sha256.hex()
            lines.append(f"checkpoint = {{ number = {context.checkpoint.number}, sha256 = {_quote(sha256)} }}")
    return "\n".join(lines) + "\n"


def _columns(context: Context) -> list[tuple[str, str]]:
    return [
        ("server", context.server),
        ("ca_pem", context.ca_pem),
        ("token", context.token),
        ("cluster_id", context.cluster_id),
        ("authority_key", context.authority_key.hex()),
        ("newest_authority", context.newest_authority.hex()),
        ("newest_bundle", ".".join(map(str, context.newest_bundle)) if any(context.newest_bundle) else ""),
        ("owner_pin", context.owner_pin.hex()),
        ("owner_key_file", context.owner_key_file),
        ("key_file", context.key_file),
    ]


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
