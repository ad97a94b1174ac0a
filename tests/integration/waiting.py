"""Waiting for what nobody announces: asked again and again within a bound, never slept for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fleet.errors import Refusal

TIMEOUT_S = 20.0
_LOOK_AGAIN_S = 0.01


async def eventually(look: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """What `look` finds, once that is true; it may be a coroutine function. A refusal on the way is nothing found.

    Raises:
        TimeoutError: it never did; the text says `what` and what was refused last.
    """
    refused = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = look()
                    if isinstance(found, Awaitable):
                        found = await found
                    if found:
                        return found
                except Refusal as refusal:
                    refused = f" (last refused: {refusal})"
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        raise TimeoutError(f"not within {timeout_s:g} s: {what}{refused}") from None
