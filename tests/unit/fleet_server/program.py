"""`fleet-server` in the tests' own process."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet_server import daemon
from fleet_server.__main__ import main


def call(*words: str | Path, env: dict[str, str] | None = None) -> Result:
    with pytest.MonkeyPatch.context() as patch:  # a server that cannot start would end the tests 45 s later
        patch.setattr(daemon, "end_within", lambda seconds, code: None)
        return CliRunner().invoke(main, [str(word) for word in words], env=env)
