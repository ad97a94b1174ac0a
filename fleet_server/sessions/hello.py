"""What a node may say of itself in its hello. Pure.

Every field is a stranger's until here: lengths fit their columns, counters fit 63 bits, and schemas are ones that end
soon when they run
(fleet.schema).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from fleet.errors import Reason, Refusal
from fleet.schema import SchemaLimitError, check_all_schema_limits
from fleet.v1 import gateway_pb2

MIN_PROTOCOL_VERSION = 1
MAX_VERSION_CHARS = 64
MAX_ID_CHARS = 64
MAX_LABELS = 64
MAX_LABEL_KEY_CHARS = 63
MAX_LABEL_VALUE_CHARS = 255
MAX_DRIVERS = 64
MAX_ACTIONS = 512
MAX_DESCRIPTION_CHARS = 500
MAX_IN_FLIGHT = 1024
MAX_COUNTER = 2**62
BOOT_ID_BYTES = 16
_ACTION = re.compile(r"[a-z][a-z0-9_-]{0,47}(?:\.[a-z][a-z0-9_-]{0,47}){1,3}")
_REMEMBERED_SCHEMAS = 1024


def check_protocol_version(version: int) -> None:
    """Refuse a node that is too old to talk to.

    Raises:
        Refusal: PROTOCOL_TOO_OLD.
    """
    if version < MIN_PROTOCOL_VERSION:
        raise Refusal(
            Reason.PROTOCOL_TOO_OLD,
            f"this server speaks protocol {MIN_PROTOCOL_VERSION} and newer, the node {version}: update the node",
        )


def check_reported(version: str, labels: Mapping[str, str]) -> None:
    """Refuse what does not fit where it is stored and shown.

    Raises:
        Refusal: MALFORMED.
    """
    if len(version) > MAX_VERSION_CHARS or not version.isprintable():
        raise _malformed(f"the software version must be printable and at most {MAX_VERSION_CHARS} characters")
    if len(labels) > MAX_LABELS:
        raise _malformed(f"a node reports at most {MAX_LABELS} labels: take some out of its config")
    for key, value in labels.items():
        fits = 0 < len(key) <= MAX_LABEL_KEY_CHARS and len(value) <= MAX_LABEL_VALUE_CHARS
        if not fits or not key.isprintable() or not value.isprintable():
            raise _malformed(
                f"reported label {key[:MAX_LABEL_KEY_CHARS]!r} must be printable: a key of at most"
                f" {MAX_LABEL_KEY_CHARS} characters and a value of at most {MAX_LABEL_VALUE_CHARS}"
            )


class HelloRules:
    """Checks hello bodies. Schemas are checked once per set: all nodes of one version send the same bytes."""

    def __init__(self) -> None:
        self._good: set[bytes] = set()

    def parse(self, raw: bytes) -> gateway_pb2.HelloBody:
        """The body, when all of it is within its limits.

        Raises:
            Refusal: MALFORMED or PROTOCOL_TOO_OLD.
        """
        try:
            body = gateway_pb2.HelloBody.FromString(raw)
        except DecodeError:
            raise _malformed("the hello's body is not a HelloBody") from None
        check_protocol_version(body.protocol_version)
        check_reported(body.software_version, body.labels)
        if not 1 <= body.max_in_flight <= MAX_IN_FLIGHT:
            raise _malformed(f"max_in_flight must be 1 to {MAX_IN_FLIGHT}")
        if len(body.boot_id) not in (0, BOOT_ID_BYTES):
            raise _malformed(f"boot_id has {BOOT_ID_BYTES} bytes, or none")
        counters = (
            body.last_accepted_seq,
            body.first_report_no,
            body.last_report_no,
            body.bundle_version.generation,
            body.bundle_version.number,
            body.config_version,
            body.last_batch_seq,
            body.audit_number,
        )
        if max(counters) > MAX_COUNTER:
            raise _malformed("a counter of the hello is out of range: the node's journal is damaged")
        self._check_drivers(body)
        return body

    def _check_drivers(self, body: gateway_pb2.HelloBody) -> None:
        raw = gateway_pb2.HelloBody(drivers=body.drivers).SerializeToString(deterministic=True)
        digest = hashlib.sha256(raw).digest()
        if digest in self._good:
            return
        actions = [action for driver in body.drivers for action in driver.actions]
        if len(body.drivers) > MAX_DRIVERS or len(actions) > MAX_ACTIONS:
            raise _malformed(f"a node offers at most {MAX_DRIVERS} drivers and {MAX_ACTIONS} actions")
        if len({action.action for action in actions}) != len(actions):
            raise _malformed("two actions of the node have the same name")
        for driver in body.drivers:
            if max(len(driver.name), len(driver.version)) > MAX_VERSION_CHARS:
                raise _malformed(f"a driver's name and version have at most {MAX_VERSION_CHARS} characters each")
        for action in actions:
            if not _ACTION.fullmatch(action.action) or len(action.description) > MAX_DESCRIPTION_CHARS:
                raise _malformed(
                    f"action {action.action[:100]!r} must be called driver.action, with a description of at most"
                    f" {MAX_DESCRIPTION_CHARS} characters"
                )
        try:
            check_all_schema_limits(action.arguments_schema for action in actions)
        except SchemaLimitError as error:
            raise _malformed(f"an argument schema is refused: {error}") from error
        if len(self._good) >= _REMEMBERED_SCHEMAS:
            self._good.clear()
        self._good.add(digest)


def _malformed(detail: str) -> Refusal:
    return Refusal(Reason.MALFORMED, detail)
