"""Results are shown as they are: to a person, as JSON, and inside a page."""

import io
import json

import pytest
from rich.console import Console

from tests.load.__main__ import put_between_marks
from tests.load.context import Context
from tests.load.results import Figures, Row, RowResult, Verdict, print_table, to_json, to_markdown
from tests.load.run import measure

_MEASURED = RowResult("X1", "work", ">= 1.0x", {"per_s": 10.0}, {"per_s": 25.0}, ratio=2.5, met=True, others_cores=0.1)
_BARE = RowResult("X2", "work", "none", {"p50_us": 1234.5})


def test_results_are_shown_with_their_verdict() -> None:
    output = io.StringIO()
    print_table([_MEASURED, _BARE], Console(file=output, width=160))
    assert "2.50" in output.getvalue()
    assert "not measured" in output.getvalue()
    document = json.loads(to_json([_MEASURED, _BARE], {"quick": True}))
    assert document["rows"][0]["product"] == {"per_s": 25.0}
    assert document["rows"][1]["met"] is None


def test_a_markdown_table_replaces_the_one_between_the_marks_and_nothing_else() -> None:
    first = put_between_marks("", to_markdown([_BARE], {"cores": 2}))
    page = f"# Above\n\n{first}\nbelow\n"
    table = to_markdown([_MEASURED], {"cores": 2})
    replaced = put_between_marks(page, table)
    assert "| X1 | work | per_s 25 | per_s 10 | 2.50 | >= 1.0x | yes | 0.1 |" in replaced
    assert "X2" not in replaced
    assert replaced.startswith("# Above\n")
    assert replaced.endswith("\nbelow\n")
    assert put_between_marks(replaced, table) == replaced


async def _bare(ctx: Context) -> Figures:
    assert ctx.quick
    return {"per_s": 10.0}


async def _product(ctx: Context) -> Figures:
    return {"per_s": 5.0}


async def _failing(ctx: Context) -> Figures:
    raise ChildProcessError("it ended")


def _judge(product: Figures, bare: Figures) -> Verdict:
    return Verdict(product["per_s"] / bare["per_s"], met=False)


async def test_a_row_that_fails_keeps_its_measured_half_and_costs_the_next_nothing() -> None:
    rows = [
        Row("X1", "work", "none", _bare, _failing, _judge),
        Row("X2", "work", "none", _failing, _product, _judge),
        Row("X3", "work", "none", _bare, _product, _judge),
        Row("X4", "work", "none", _bare),
    ]
    run = await measure(rows, Console(file=io.StringIO()), quick=True)
    assert set(run.failures) == {"X1", "X2"}
    assert "it ended" in run.failures["X1"]
    first, second, third, fourth = run.results
    assert (first.baseline, first.product, first.met) == ({"per_s": 10.0}, {}, None)
    assert (second.baseline, second.product) == ({}, {})
    assert third.ratio == pytest.approx(0.5)
    assert third.met is False
    assert fourth.met is None
    assert all(result.others_cores is not None for result in run.results)
