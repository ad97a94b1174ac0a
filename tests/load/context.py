"""What every row is given: sizes for a full or a quick run, a folder, certificates, and processes that all end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.fakes.tls import FakeAuthority
from tests.load.children import Child

_T = TypeVar("_T")


@dataclass
class Context:
    """One run of the load rows."""

    folder: Path
    """Scratch; on the file system that the commits are measured on."""
    quick: bool
    authority: FakeAuthority = field(default_factory=FakeAuthority)
    _tls_files: dict[str, str] = field(default_factory=dict)

    def scaled(self, full: _T, quick: _T) -> _T:
        """`full`, or `quick` in a quick run."""
        return quick if self.quick else full

    @property
    def warm_s(self) -> float:
        """How long a workload runs before it is measured, seconds."""
        return self.scaled(1.0, 0.3)

    @property
    def measure_s(self) -> float:
        """How long a throughput is measured, seconds."""
        return self.scaled(5.0, 1.0)

    def tls_files(self) -> dict[str, str]:
        """Paths of PEM files for a loopback server: `ca`, `cert` and `key`."""
        if not self._tls_files:
            ca_path = self.folder / "ca.crt"
            ca_path.write_bytes(self.authority.cert_pem)
            cert_path, key_path = self.authority.issue().write(self.folder)
            self._tls_files = {"ca": str(ca_path), "cert": str(cert_path), "key": str(key_path)}
        return self._tls_files

    @asynccontextmanager
    async def child(self, role: str, *, uvloop: bool = False) -> AsyncIterator[Child]:
        """A load process for the length of the block; it has ended when the block has."""
        child = await Child.start(role, uvloop=uvloop)
        try:
            yield child
        finally:
            await child.end()
