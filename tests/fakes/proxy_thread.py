"""`FaultProxy` for synchronous tests: its own event loop on its own thread."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.fakes.connection import WAIT_TIMEOUT_S, Side
from tests.fakes.lane import Direction
from tests.fakes.proxy import FaultProxy, Target

_T = TypeVar("_T")


class FaultProxyThread:
    """A context manager with the faults and waits of `FaultProxy`, each returning once the proxy has taken
    it in."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._proxy: FaultProxy

    def __enter__(self) -> Self:
        self._thread.start()
        self._proxy = self._await(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._await(self._proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self._proxy.port

    @property
    def address(self) -> str:
        """`host:port`, as gRPC targets are written."""
        return self._proxy.address

    @property
    def opened(self) -> int:
        """Connections ever carried through to the target."""
        return self._proxy.opened

    def retarget(self, target: Target) -> None:
        """Send later connections to another server."""
        self._call(lambda: setattr(self._proxy, "target", target))

    def cut(self, side: Side = Side.BOTH) -> None:
        """Reset one or both ends of every live connection."""
        self._call(lambda: self._proxy.cut(side))

    def end(self, direction: Direction) -> None:
        """Half-close every live connection in one direction."""
        self._call(lambda: self._proxy.end(direction))

    def deafen(self, direction: Direction | None = None) -> None:
        """Stop reading and writing without closing."""
        self._call(lambda: self._proxy.deafen(direction))

    def hold(self, direction: Direction | None = None) -> None:
        """Take bytes and keep them back."""
        self._call(lambda: self._proxy.hold(direction))

    def release(self, direction: Direction | None = None) -> None:
        """Deliver what was held and go on."""
        self._call(lambda: self._proxy.release(direction))

    def slow(
        self,
        direction: Direction | None = None,
        bytes_per_s: float | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """Trickle at `bytes_per_s` and delay by `latency_s`."""
        self._call(lambda: self._proxy.slow(direction, bytes_per_s, latency_s))

    def cut_after(self, direction: Direction, n_bytes: int) -> None:
        """Reset a connection once exactly `n_bytes` of it went in `direction`."""
        self._call(lambda: self._proxy.cut_after(direction, n_bytes))

    def refuse(self) -> None:
        """Refuse new connections until `heal`."""
        self._call(self._proxy.refuse)

    def heal(self) -> None:
        """Accept connections again and lift every fault."""
        self._call(self._proxy.heal)

    def forwarded_bytes(self, direction: Direction) -> int:
        """Bytes forwarded in `direction` over all connections."""
        return self._call(lambda: self._proxy.forwarded_bytes(direction))

    def wait_connections(self, count: int, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once exactly `count` connections are live."""
        self._await(self._proxy.wait_connections(count, timeout_s))

    def wait_opened(self, count: int, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once `count` connections were ever opened and one is live."""
        self._await(self._proxy.wait_opened(count, timeout_s))

    def wait_bytes(self, direction: Direction, n_bytes: int, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once at least `n_bytes` in all were forwarded in `direction`."""
        self._await(self._proxy.wait_bytes(direction, n_bytes, timeout_s))

    async def _open(self) -> FaultProxy:
        return await FaultProxy(self._target).__aenter__()

    def _await(self, step: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result()

    def _call(self, step: Callable[[], _T]) -> _T:
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(step())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result()
