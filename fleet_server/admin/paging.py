"""Pages of lists: sizes within bounds, and tokens that nobody needs to understand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fleet.v1 import admin_pb2

_DEFAULT = 100
_MOST = 1000


def page_size(page: admin_pb2.Page) -> int:
    """Rows to return: 100 unless asked, at most 1000."""
    return min(page.size or _DEFAULT, _MOST)


class Paged(Protocol):
    """A record that knows where the next page begins."""

    @property
    def page_token(self) -> str:
        """Token of the page after this record."""
        ...


def next_token(found: Sequence[Paged], limit: int) -> str:
    """Token of the next page; empty when this one was not full."""
    return found[-1].page_token if len(found) == limit else ""
