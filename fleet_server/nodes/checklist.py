"""What is left to do when a node was revoked: pure. The server ticks what it did itself; the rest is a person's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fleet.errors import Reason, Refusal

MAX_NOTE_CHARS = 500
SERVER = "server"
_OF_BEFORE = ". Of a machine before: "


@dataclass(frozen=True, slots=True)
class ChecklistItem:
    """One thing that has to be done, or was.

    Args:
        item: its word, such as ``host-secrets``.
        detail: what it is about, and what was or has to be done.
        done_at_ms: Unix milliseconds; 0 while it is open.
        done_by: who says so; ``server`` for what the revocation did itself.
        note: what that person wrote beside it.
    """

    item: str
    detail: str
    done_at_ms: int = 0
    done_by: str = ""
    note: str = ""


def general_items(now_ms: int) -> Sequence[ChecklistItem]:
    """What is to be looked at whichever node it is."""
    return (
        ChecklistItem(
            "command-keys",
            "nothing to change: a node holds public keys alone, a key scoped to its site among them, and can sign no"
            " command with what it holds",
            now_ms,
            SERVER,
        ),
        ChecklistItem(
            "host-secrets",
            "what the machine's drivers, programs and users could read: credentials of its devices, of services that it"
            " logs in to, and what commands brought along as arguments. Replace those that matter",
        ),
    )


def carried_over(before: Sequence[ChecklistItem], items: Sequence[ChecklistItem]) -> Sequence[ChecklistItem]:
    """A list that begins, with what is open yet of the one before: that of a machine which had the node's place."""
    left = {item.item: item for item in before if not item.done_at_ms}
    carried = [_with_rest(item, left.pop(item.item, None)) for item in items]
    return [*carried, *left.values()]


def _with_rest(item: ChecklistItem, rest: ChecklistItem | None) -> ChecklistItem:
    if rest is None:
        return item
    told = dict.fromkeys([item.detail, *rest.detail.split(_OF_BEFORE)])
    return replace(item, detail=_OF_BEFORE.join(told), done_at_ms=0, done_by="", note="")


def checked_tick(items: Sequence[ChecklistItem], item: str, note: str) -> ChecklistItem:
    """The item that is to be ticked.

    Raises:
        Refusal: NOT_FOUND when there is no such item, INVALID_ARGUMENT when the note says nothing or too much.
    """
    found = next((each for each in items if each.item == item), None)
    if found is None:
        words = ", ".join(each.item for each in items) or "none: only a node that was revoked has one"
        raise Refusal(Reason.NOT_FOUND, f"the checklist has no item {item[:40]!r}. It has: {words}")
    if not note.strip() or len(note) > MAX_NOTE_CHARS:
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            f"say in a note of at most {MAX_NOTE_CHARS} characters what was done, or why nothing had to be",
        )
    return found
