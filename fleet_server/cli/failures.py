"""How a verb of fleetctl ends badly: exit codes, and the one place that turns a failed call into a sentence with a
next step."""

from __future__ import annotations

import re
import sys
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Any

import click

from fleet.prose import wrapped
from fleet_server.cli.terminal import Styled, printable, styled, terminal_width, wants_colour

if TYPE_CHECKING:
    import grpc

    from fleet.errors import Refusal


class ExitCode(IntEnum):
    """What a script can rely on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


EXIT_CODE_MEANING = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "an outcome failed, or the server itself did",
    ExitCode.USAGE: "wrong usage, or a bad profile",
    ExitCode.REFUSED: "refused",
    ExitCode.UNREACHABLE: "the server was not reached, or could not prove who it is",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}


_NEXT = Styled(" next:", "cyan", bold=True)


class Failure(click.ClickException):
    """A verb ends with `exit_code`.

    Args:
        message: what is wrong. May quote the server: it is cleaned of control characters when shown.
        hint: what to do next.
        reason: of the server's refusal (docs/protocol.md, "Refusals"); empty when it was none.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.reason = reason

    def show(self, file: IO[Any] | None = None) -> None:
        """Write both sentences to stderr."""
        stream = file or sys.stderr
        colour, width = wants_colour(stream), terminal_width(stream)
        for label, text in ((Styled("error:", "red", bold=True), self.message), (_NEXT, self.hint)):
            if text:
                shown = wrapped(printable(text), width, indent=len(label.text) + 1)
                click.echo(f"{styled(label, colour=colour)} {shown}", file=stream, color=colour)


class Failed(Failure):
    """The call was made and what it asked for did not come out well."""


class BadProfile(Failure):
    """The profile, or another setting of this side, cannot be used."""

    exit_code = ExitCode.USAGE


class Refused(Failure):
    """The server, or fleetctl itself, said no."""

    exit_code = ExitCode.REFUSED


class Unreachable(Failure):
    """No server that this profile trusts answered.

    Args:
        never_sent: it is certain that the call left for no server.
        waited_s: seconds in which no answer came.
    """

    exit_code = ExitCode.UNREACHABLE

    def __init__(self, message: str, *, hint: str = "", never_sent: bool = False, waited_s: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.never_sent = never_sent
        self.waited_s = waited_s


class Unable(Unreachable):
    """The server answered that it cannot answer now. It is tried again wherever one that is away is."""

    exit_code = ExitCode.FAILED


_TLS_SIGNS = ("CERTIFICATE_VERIFY_FAILED", "Ssl handshake failed", "SSL_ERROR_SSL", "WRONG_VERSION_NUMBER")
_NO_CONNECTION_SIGNS = ("failed to connect to all addresses", "lookup failed")
_NAME_SIGNS = ("Hostname Verification Check failed", "is not in peer certificate")

_WAYS_TO_FAIL = (
    (
        "Connection refused",
        (
            ": nothing listens there",
            "start fleet-server, or correct the address: it is admin_listen in `fleet-server config`",
        ),
    ),
    ("lookup failed", (": there is no host of that name", "correct the name, or see whether DNS works here")),
    ("No route to host", (": no network leads there", "is a VPN or this machine's network down?")),
    ("Network is unreachable", (": no network leads there", "is a VPN or this machine's network down?")),
)

_HINTS = {
    "NO_TARGETS": "see which nodes there are: `fleetctl nodes list`",
    "UNKNOWN_ACTION": "see what a node offers: `fleetctl nodes show NODE`",
    "ARGUMENTS_INVALID": "see what the action takes: `fleetctl nodes show NODE`",
    "SUSPENDED": "when what it was suspended for is over: `fleetctl nodes resume NODE`",
    "ARGUMENTS_TOO_LARGE": "put the data where the node can fetch it, and pass its address",
    "FINGERPRINT_MISMATCH": "do not approve it: `fleetctl enrollments reject ID`, and find out who asked to join",
    "ALREADY_DECIDED": "see what stands: `fleetctl enrollments list --state all`",
    "QUEUE_FULL": "wait until the nodes have worked off what is queued: `fleetctl commands list --open`",
    "DRAINING": "another replica will answer in a moment: run it again",
    "INTENT_REQUIRED": "`fleetctl run` signs with your key: make one with `fleetctl operator keygen`, then enroll it",
    "INTENT_REFUSED": "see who may sign: `fleetctl operator list`, and what is asked for: `fleetctl policy show`",
    "OWNER_STATEMENT_REFUSED": "see who the owner is: `fleetctl owner show`",
    "QUARANTINED": "a record failed its integrity check: look at `fleetctl audit tail`",
}


def hint_for(reason: str) -> str:
    """The next step after a refusal with this reason; "" when there is none to give."""
    return _HINTS.get(reason, "")


def explain(error: grpc.RpcError, *, server: str) -> Failure:
    """Turn a failed call into what the person sees.

    Args:
        error: as raised by grpc.
        server: "host:port" that was called.
    """
    import grpc

    from fleet.errors import Reason
    from fleet.status import decode, is_refusal

    failed: Any = error  # a failed call has code() and details(), its base class does not say so
    code, details = failed.code(), failed.details() or ""
    refusal = decode(error)
    if refusal.reason is Reason.UNAVAILABLE and is_refusal(error):
        names_a_repair = bool(_commands(refusal.detail))
        return Unable(
            refusal.detail, hint="" if names_a_repair else "the server's log tells why; a full disk is one cause"
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return _explain_unreachable(code is grpc.StatusCode.DEADLINE_EXCEEDED, details, refusal, server)
    if code is grpc.StatusCode.CANCELLED and not is_refusal(error):
        # fleetctl reads on no call that it cancelled itself.
        return Unreachable(f"the server at {server} ended the call: it stops", hint="try again: another one may answer")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        if refusal.reason in (Reason.BAD_PROOF, Reason.CHALLENGE_EXPIRED):  # what a signature should have shown
            return Refused(refusal.detail)
        return Refused(
            f"the server at {server} does not accept this token: revoked, mistyped, or for another cluster",
            hint=f"log in with a good one: `fleetctl login {server}`",
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return _explain_permission(details, refusal)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(
            f"the server at {server} does not know this call: it is the gateway that nodes connect to, "
            "or older than this fleetctl",
            hint="log in at the server's admin_listen (`fleet-server config`), or compare `fleetctl version --server`",
        )
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
        return Failed(
            f"the server failed: {details or code.name}",
            hint="the server's log tells more; look for the incident id above",
        )
    hint = _HINTS.get(refusal.reason, "")
    if _commands(hint) and _commands(hint) <= _commands(details):
        hint = ""  # the server's own sentence says it already
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and refusal.retry_after_s is not None:
        hint = f"try again in {refusal.retry_after_s:.0f} s" + (f"; {hint}" if hint else "")
    return Refused(details or code.name, hint=hint, reason=str(refusal.reason))


def _commands(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def _explain_unreachable(timed_out: bool, details: str, refusal: Refusal, server: str) -> Failure:
    if any(sign in details for sign in _NAME_SIGNS):
        return Unreachable(
            f"the certificate of the server at {server} is for another name",
            hint="log in with the name or address that stands in the certificate",
            never_sent=True,
        )
    if any(sign in details for sign in _TLS_SIGNS):
        return Unreachable(
            f"the server at {server} does not show a certificate of the CA that this profile trusts: "
            "this is another server, its CA was replaced, or someone sits in between",
            hint=f"compare the CA's SHA-256 with the server's owner, then `fleetctl login {server} --ca-file FILE`",
            never_sent=True,
        )
    if timed_out:
        return Unreachable(
            f"the server at {server} did not answer in time",
            hint="is it overloaded, or a firewall in between? Try again, or look at the server's log",
        )
    if refusal.reason == "DRAINING":
        return Unreachable(f"the server at {server} is draining", hint=_HINTS["DRAINING"])
    cause, hint = next(
        (told for sign, told in _WAYS_TO_FAIL if sign in details),
        ("", "check that fleet-server runs there, and that this is its admin_listen (`fleet-server config`)"),
    )
    never_sent = any(sign in details for sign in _NO_CONNECTION_SIGNS)
    return Unreachable(f"cannot reach the server at {server}{cause}", hint=hint, never_sent=never_sent)


def _explain_permission(details: str, refusal: Refusal) -> Failure:
    needed = refusal.metadata.get("needed_role")
    if not needed:
        return Refused(
            details or "permission denied", hint=_HINTS.get(refusal.reason, "see who you are: `fleetctl whoami`")
        )
    return Refused(
        f"this needs the role {needed} or more",
        hint=f"see yours: `fleetctl whoami`; an owner can `fleetctl operators create NAME --role {needed}`",
    )
