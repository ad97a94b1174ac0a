"""The program of every load process: `python -m tests.load.child MODULE:CLASS [--uvloop]`.

It makes one object of that class and then does as its parent says, one JSON line in and one out:
`{"do": "pump", "args": {...}}` -> `{"answer": {...}}` or `{"error": "..."}`. It ends when its standard input does, so
it never outlives its parent, and after `MAX_LIFETIME_S` whatever happens.
"""

import argparse
import asyncio
import importlib
import json
import resource
import signal
import sys
import traceback
from typing import Any

import uvloop

MAX_LIFETIME_S = 600
_CLOSE_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 8 * 1024 * 1024


async def serve(role: Any) -> None:
    """Read requests from standard input until it ends; answer each before the next."""
    requests = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    while line := await requests.readline():
        request = json.loads(line)
        try:
            answer = {"answer": await getattr(role, request["do"])(**request["args"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    async with asyncio.timeout(_CLOSE_TIMEOUT_S):
        await role.close()


async def _run(module: str, name: str) -> None:
    await serve(getattr(importlib.import_module(module), name)())


def main() -> None:
    """Parse, take all open files the hard limit allows, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", help="MODULE:CLASS")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    signal.alarm(MAX_LIFETIME_S)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    module, name = options.role.split(":")
    if options.uvloop:
        uvloop.run(_run(module, name))
    else:
        asyncio.run(_run(module, name))


if __name__ == "__main__":
    main()
