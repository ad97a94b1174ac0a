"""fleetctl as a process, with a profile of its own."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from tests.integration.installation import Installation
from tests.integration.processes import BIN


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
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Fleetctl:
    """Runs fleetctl with a profile of its own."""

    def __init__(self, installation: Installation, folder: Path, token: str) -> None:
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
        code, out, err = await run_fleetctl(self._environment, *arguments)
        assert "Traceback" not in err
        return code, out, err
