"""Text form of a join token: ``fjt1.`` + base64url without padding."""

from __future__ import annotations

import base64
import binascii

from google.protobuf.message import DecodeError

from fleet.trust import TrustError, TrustReason
from fleet.v1 import enrollment_pb2

PREFIX = "fjt1."
MAX_CHARS = 16 * 1024


def encode(token: enrollment_pb2.JoinToken) -> str:
    """Text that a person can copy."""
    return PREFIX + base64.urlsafe_b64encode(token.SerializeToString()).decode().rstrip("=")


def decode(text: str) -> enrollment_pb2.JoinToken:
    """Parse the text; `fleet.trust.verify_join_token` checks what it says.

    Raises:
        TrustError: not a token, or not all of one.
    """
    text = "".join(text.split())  # terminals and mail break long lines
    if not text.startswith(PREFIX) or len(text) > MAX_CHARS:
        raise TrustError(
            TrustReason.MALFORMED,
            f"a join token begins with {PREFIX!r}: copy it again, whole",
        )
    body = text[len(PREFIX) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        return enrollment_pb2.JoinToken.FromString(raw)
    except (binascii.Error, ValueError, DecodeError) as error:
        raise TrustError(TrustReason.MALFORMED, "the join token is damaged: copy it again, whole") from error
