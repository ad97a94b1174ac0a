"""Fault: everything, at random (docs/faults.md, "Chaos"). `make chaos` is the same for longer, and larger."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import told
from tests.chaos.run import Options, Run
from tests.chaos.world import Size

SEED = 5
"""In these twenty seconds it draws every kind of fault."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("chaos")
async def test_nothing_is_lost_or_done_twice_whatever_is_broken(tmp_path: Path) -> None:
    options = Options(seed=SEED, seconds=20, size=Size.of(20), gap_s=0.55, folder=tmp_path)
    report = await Run(options, print).run()
    print(told(report, SEED))
    assert not report.violations, told(report, SEED)
    assert report.unknown_answers, "an operator was left without an answer: otherwise nothing was broken"
