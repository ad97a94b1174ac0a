"""Hints between replicas over NATS: for installations with so many replicas that the database should be spared them.

One connection subscribes and publishes to one subject. The library does not connect again by itself here: the relay
does, so that a new connection is known for what it is and begins with a round of polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet.identity import PrivateFileError, read_private
from fleet.logs import get_logger
from fleet_server.database.hints import EVERYTHING, pack
from fleet_server.database.relay import TransportError

if TYPE_CHECKING:
    from nats.aio.client import Client

log = get_logger(__name__)

_CONNECT_TIMEOUT_S = 5
_FLUSH_TIMEOUT_S = 5
_CLOSE_TIMEOUT_S = 0.5
_PING_S = 10
_MAX_PENDING = 1_024
_MAX_PENDING_BYTES = 8 * 1024 * 1024
_NOBODY = "0" * 16
_JWT = "-----BEGIN NATS USER JWT-----"
MISSING = "NATS needs one more package: pip install 'fleet-gateway[nats]'"


class NatsTransport:
    """Opens links to a NATS server, or to one of a cluster of them.

    Args:
        servers: `nats://host:port` or `tls://host:port`, without credentials; any of them will do.
        subject: what is published and subscribed to.
        ca_file: PEM of the CAs that may have signed the server's certificate; the machine's own without it.
        credentials_file: mode 0600: an NKey seed, a `.creds` file, `user:password`, or a token. Read at each connect.
    """

    def __init__(
        self, servers: Sequence[str], *, subject: str, ca_file: Path | None, credentials_file: Path | None
    ) -> None:
        self._servers = list(servers)
        self._subject = subject
        self._ca_file = ca_file
        self._credentials_file = credentials_file
        self._secure = all(server.startswith("tls://") for server in servers)

    @property
    def name(self) -> str:
        """Addresses, as they were configured."""
        return ",".join(self._servers)

    async def open(self) -> NatsLink:
        """Connect and subscribe.

        Raises:
            TransportError: no server takes this one, a file is of no use, or the library is missing.
        """
        try:
            from nats.aio.client import Client
            from nats.errors import Error
        except ImportError:
            raise TransportError(MISSING) from None
        client = Client()
        link = NatsLink(client, self._subject)
        try:
            await client.connect(
                servers=self._servers,
                name="fleet-server wakeup",
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT_S,
                ping_interval=_PING_S,
                pending_size=_MAX_PENDING_BYTES,
                error_cb=link.failed,
                disconnected_cb=link.ended,
                closed_cb=link.ended,
                **self._tls(),
                **self._credentials(client),
            )
            self._check_secure(client)
            await client.subscribe(
                self._subject,
                cb=link.take,
                pending_msgs_limit=_MAX_PENDING,
                pending_bytes_limit=_MAX_PENDING_BYTES,
            )
            await client.flush(_FLUSH_TIMEOUT_S)
        except (Error, OSError, ssl.SSLError, TimeoutError) as error:
            await link.close()
            raise TransportError(link.why or str(error) or type(error).__name__) from None
        except BaseException:
            await link.close()
            raise
        link.connected = True
        return link

    def _tls(self) -> dict[str, Any]:
        if not self._secure:
            return {}
        try:
            return {"tls": ssl.create_default_context(cafile=self._ca_file)}
        except OSError as error:  # SSLError among them
            raise TransportError(f"wakeup_ca_file {self._ca_file}: {error.strerror or error}") from None

    def _credentials(self, client: Client) -> dict[str, Any]:
        if self._credentials_file is None:
            return {}
        try:
            text = read_private(self._credentials_file).decode()
        except (PrivateFileError, UnicodeDecodeError) as error:
            raise TransportError(f"wakeup_credentials_file: {error}") from None

        def when_secure(value: str) -> Callable[[], str]:
            def hand_out() -> str:
                self._check_secure(client)
                return value

            return hand_out

        if _JWT in text:
            from nats.aio.client import RawCredentials

            return {"user_credentials": RawCredentials(text)}
        words = text.split()
        if len(words) != 1:
            raise TransportError("wakeup_credentials_file holds none: write an NKey seed, user:password or a token")
        if words[0].startswith("SU") and ":" not in words[0]:
            return {"nkeys_seed_str": words[0]}
        user, colon, password = words[0].partition(":")
        if colon:
            return {"user": when_secure(user), "password": when_secure(password)}
        return {"token": when_secure(user)}

    def _check_secure(self, client: Client) -> None:
        """Whoever sits in between could say that no TLS is asked for, and the library would believe it."""
        if self._secure and not client._server_info.get("tls_required"):
            raise TransportError("the server asks for no TLS, and tls:// was configured: nothing was told to it")


class NatsLink:
    """One connection.

    Args:
        client: connects; its callbacks are the methods of this.
    """

    def __init__(self, client: Client, subject: str) -> None:
        self._client = client
        self._subject = subject
        self._heard: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_PENDING)
        self._overflowed = False
        self.why = ""
        """What the library said of a failure: the first, while it connects, for others follow from that."""
        self.connected = False

    async def say(self, messages: Sequence[str]) -> None:
        """Publish, and wait until the server has it."""
        from nats.errors import Error

        try:
            for message in messages:
                await self._client.publish(self._subject, message.encode())
            await self._client.flush(_FLUSH_TIMEOUT_S)
        except (Error, OSError) as error:
            raise TransportError(str(error) or type(error).__name__) from None

    async def hear(self) -> bytes:
        """The next message."""
        if self._overflowed:
            self._overflowed = False
            return next(iter(pack(_NOBODY, [EVERYTHING]))).encode()
        message = await self._heard.get()
        if message is None:
            raise TransportError(self.why or "the connection was closed")
        return message

    async def close(self) -> None:
        """Close it; the library waits for ever for the end of a connection whose handshake failed."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._client.close()

    async def take(self, message: Any) -> None:
        """The library's callback for a message."""
        self._put(message.data)

    async def failed(self, error: Exception) -> None:
        """The library's callback for an error; a slow consumer lost messages."""
        said = str(error) or type(error).__name__
        self.why = said if self.connected else self.why or said
        self._overflowed = self.connected
        log.debug("wakeup_nats_error", error=said)

    async def ended(self) -> None:
        """The library's callback when the connection is gone."""
        self._overflowed = False
        while self._heard.full():
            self._heard.get_nowait()
        self._heard.put_nowait(None)

    def _put(self, data: bytes) -> None:
        try:
            self._heard.put_nowait(data)
        except asyncio.QueueFull:
            self._overflowed = True
