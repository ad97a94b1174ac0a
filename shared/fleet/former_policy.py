"""What the policies of owners who are pinned no more asked signatures for. Pure.

Another pin begins with nothing, and the server carries the new owner's policy: were the old one forgotten, withholding
the new one would make every action free that only a policy protects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fleet.globs import glob_matches, is_glob


@dataclass(frozen=True, slots=True)
class FormerPolicy:
    """Globs that stay protected, and that let nothing pass.

    Args:
        globs: sorted, each once.
        issued_at_ms: of the newest policy that held them, Unix milliseconds. One that the owner in force issued before
            that may be an old one, which the owner has replaced since.
    """

    globs: tuple[str, ...]
    issued_at_ms: int

    def protects(self, action: str) -> bool:
        """Whether one of them named the action."""
        return any(glob_matches(glob, action) for glob in self.globs)

    def after(self, issued_at_ms: int) -> FormerPolicy | None:
        """What is left of it once the owner in force has issued a policy of its own."""
        return None if issued_at_ms >= self.issued_at_ms else self

    def with_policy(self, globs: Iterable[str], issued_at_ms: int) -> FormerPolicy:
        """One more policy that is former now."""
        return FormerPolicy(tuple(sorted({*self.globs, *globs})), max(self.issued_at_ms, issued_at_ms))

    def as_json(self) -> dict[str, object]:
        """For a file."""
        return {"globs": list(self.globs), "issued_at_ms": self.issued_at_ms}


NOTHING_BEFORE = FormerPolicy((), 0)


def former_from_json(said: Mapping[str, object] | None) -> FormerPolicy | None:
    """Inverse of `as_json`; None for None.

    Raises:
        ValueError: it is something else.
    """
    if said is None:
        return None
    globs, issued_at_ms = said["globs"], said["issued_at_ms"]
    if not isinstance(globs, Sequence) or not isinstance(issued_at_ms, int):
        raise ValueError("not a former policy")
    if not all(isinstance(glob, str) and is_glob(glob) for glob in globs):
        raise ValueError("not a glob")
    return FormerPolicy(tuple(globs), issued_at_ms)
