"""An operator's token, from the environment, a file, or wherever else it was typed: never from the command line."""

from __future__ import annotations

from collections.abc import Mapping

from fleet_server.cli.failures import BadProfile

MAX_TOKEN_BYTES = 4096
_JOIN_TOKEN_BEGINS = "fjt1."


def token_of_environment(environment: Mapping[str, str]) -> str:
    """The token in FLEETCTL_TOKEN, or in the file that FLEETCTL_TOKEN_FILE names; empty when neither is set.

    Raises:
        BadProfile: the file cannot be read, or what is there is no token.
    """
    if token := environment.get("FLEETCTL_TOKEN"):
        return clean_token(token, "FLEETCTL_TOKEN")
    if path := environment.get("FLEETCTL_TOKEN_FILE"):
        return read_token_file(path)
    return ""


def read_token_file(path: str) -> str:
    """The token in a file.

    Raises:
        BadProfile: it cannot be read, or what is there is no token.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise BadProfile(
            f"cannot read the token file {path}: {error.strerror}", hint="name a file that this user may read"
        ) from error
    return clean_token(raw.decode("ascii", "replace"), path)


def clean_token(text: str, source: str) -> str:
    """The token without white space around it. Never quotes it.

    Raises:
        BadProfile: it cannot be an operator's token.
    """
    token = text.strip()
    if token.startswith(_JOIN_TOKEN_BEGINS):
        raise BadProfile(
            f"{source} holds a join token: that is for `fleet-node enroll`",
            hint="give an operator's token, as `fleet-server init` or `fleetctl operators create` made it",
        )
    if not token or len(token) > MAX_TOKEN_BYTES or not (token.isascii() and token.isprintable()) or " " in token:
        raise BadProfile(
            f"{source} holds no operator token", hint="copy the whole text that was shown when it was made"
        )
    return token
