"""docs/faults.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"`([a-z_/]+/test_[a-z_]+\.py)`:((?: `test_\w+`,?)+)")


def names_in(path: Path) -> set[str]:
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "name"))
    return {node.name for node in functions if node.name.startswith("test_")}


def named() -> dict[Path, set[str]]:
    """Tests that the page names, by file."""
    found: dict[Path, set[str]] = {}
    for name, tests in _FILE.findall((ROOT / "docs/faults.md").read_text()):
        found.setdefault(ROOT / "tests" / name, set()).update(re.findall(r"test_\w+", tests))
    return found


def test_every_test_that_the_page_names_exists() -> None:
    assert len(named()) > 10
    for path, tests in named().items():
        assert tests <= names_in(path), (path, tests - names_in(path))


def test_nothing_on_the_page_is_missed_by_this_test() -> None:
    every = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/faults.md").read_text()))
    assert every == set().union(*named().values())
