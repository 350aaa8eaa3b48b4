"""One run that gets a fault of every kind is bitwise identical to an undisturbed one."""

import math
import random
from pathlib import Path

import pytest
from helpers.files import small_disk_at
from helpers.forked import fork_server
from helpers.soak import DISK, KINDS, soak_run

FAULTS = 12


@pytest.mark.timeout(600)
def test_run_with_faults_of_every_kind_equals_the_undisturbed_one(workspace: Path) -> None:
    (workspace / "runs").mkdir()
    with small_disk_at(workspace / "runs", DISK), fork_server() as server:
        soak = soak_run(server, workspace, random.Random(3), FAULTS, math.inf)
    assert soak.problems == []
    assert set(soak.faults) == set(KINDS)
