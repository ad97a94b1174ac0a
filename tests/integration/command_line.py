"""fleetctl as a process, with a profile of its own."""

import asyncio
import os
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tests.fakes.forked import fork
from tests.integration.installation import Installation
from tests.integration.processes import BIN

Run = Callable[..., Awaitable[tuple[int, str, str]]]
_TIMEOUT_S = 60.0


async def run_fleetctl(environment: Mapping[str, str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "fleetctl"),
        *map(str, words),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def fork_fleetctl(environment: Mapping[str, str], *words: object) -> tuple[int, str, str]:
    """As `run_fleetctl`, where it is not fleetctl that is tested: it starts in a tenth of the time."""
    return await asyncio.to_thread(_forked, environment, *map(str, words))


def _forked(environment: Mapping[str, str], *words: str) -> tuple[int, str, str]:
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as errors:
        process = fork(["fleet_server.cli", *words], environment, errors.name)
        too_long = threading.Timer(_TIMEOUT_S, os.kill, (process.pid, signal.SIGKILL))
        too_long.start()
        try:
            with process.stdout:
                out = process.stdout.read()
            return process.wait(_TIMEOUT_S), out, errors.read()
        finally:
            too_long.cancel()


class Fleetctl:
    """Runs fleetctl with a profile of its own.

    Args:
        installation: where it logs in.
        folder: of its files.
        token: of the operator.
        run: `run_fleetctl` or `fork_fleetctl`.
    """

    def __init__(self, installation: Installation, folder: Path, token: str, run: Run | None = None) -> None:
        self._run = run or run_fleetctl
        self._folder = folder
        self.ca_file = installation.data / "tls" / "ca.crt"
        self._environment = {
            **os.environ,
            "FLEETCTL_PROFILE": str(folder / "profile.toml"),
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }
        self._token = token
        self.address = f"127.0.0.1:{installation.admin_port}"
        """Where it logs in."""

    async def login(self, *more: str) -> None:
        """Remember the server."""
        token_file = self._folder / "token"
        token_file.write_text(self._token)
        token_file.chmod(0o600)
        code, _, err = await self(
            "login", self.address, "--ca-file", str(self.ca_file), "--token-file", str(token_file), *more
        )
        assert code == 0, err

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code, out, err = await self._run(self._environment, *arguments)
        assert "Traceback" not in err
        return code, out, err
