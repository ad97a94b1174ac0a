"""docs/faults.md and docs/threat_model.md name tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"`([a-z_/]+/test_[a-z0-9_]+\.py)`:((?:\s+`test_\w+`,?)+)")
pages = pytest.mark.parametrize("page", ["docs/faults.md", "docs/threat_model.md"])


def names_in(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions))
    return {name for name in found if name.startswith("test_")}


def named(page: str) -> dict[Path, set[str]]:
    """Tests that the page names, by file."""
    found: dict[Path, set[str]] = {}
    for name, tests in _FILE.findall((ROOT / page).read_text()):
        found.setdefault(ROOT / "tests" / name, set()).update(re.findall(r"test_\w+", tests))
    return found


@pages
def test_every_test_that_the_page_names_exists(page: str) -> None:
    assert len(named(page)) > 10
    for path, tests in named(page).items():
        assert tests <= names_in(path), (path, tests - names_in(path))


@pages
def test_nothing_on_the_page_is_missed_by_this_test(page: str) -> None:
    every = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
    assert every == set().union(*named(page).values())
