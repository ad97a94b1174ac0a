"""Pages of lists: sizes within bounds, and tokens that nobody needs to understand."""

from __future__ import annotations

from fleet.v1 import admin_pb2

_DEFAULT = 100
_MOST = 1000


def page_size(page: admin_pb2.Page) -> int:
    """Rows to return: 100 unless asked, at most 1000."""
    return min(page.size or _DEFAULT, _MOST)
