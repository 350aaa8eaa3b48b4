"""Runs that are killed (SIGKILL) at random moments and resumed are bitwise identical to an uninterrupted one."""

import random
from pathlib import Path

import pytest
from helpers.forked import fork_server
from helpers.kills import MOMENTS, finish, kill_runs

KILLS = 26


@pytest.mark.timeout(600)
def test_killed_runs_equal_the_uninterrupted_one(workspace: Path) -> None:
    with fork_server() as server:
        finish(server, workspace, "uninterrupted")
        kills = kill_runs(server, workspace, random.Random(20240520), KILLS)
    assert kills.problems == []
    assert kills.total == KILLS
    assert set(kills.aimed) == set(MOMENTS)
    assert kills.inside_save >= 1
