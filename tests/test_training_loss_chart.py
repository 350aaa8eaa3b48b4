"""The loss chart of the live panel: its size, its axes, its curve and its points."""

import math

from jaxgpt.training.loss_chart import LABEL_WIDTH, loss_chart

WIDTH, HEIGHT = 48, 11
FALLING = {step: 4.0 - step / 100 for step in range(100)}


def lines(*args: object) -> list[str]:
    return loss_chart(*args, WIDTH, HEIGHT).plain.splitlines()  # type: ignore[arg-type]


def test_chart_has_the_size_asked_for_and_labels() -> None:
    chart = lines(FALLING, {})
    assert len(chart) == HEIGHT
    assert max(map(len, chart[1:])) == WIDTH
    assert [line.split("┤")[0].strip() for line in chart if "┤" in line] == ["3.951", "3.480", "3.010"]
    assert chart[-1].split() == ["step", "0", "99"]


def test_falling_loss_falls_from_the_first_to_the_last_row() -> None:
    rows = [line[LABEL_WIDTH:] for line in lines(FALLING, {})[1:-2]]
    first_dots = [next(i for i, cell in enumerate(row) if cell != "\u2800") for row in rows]
    assert first_dots == sorted(first_dots)
    assert first_dots[0] == 0
    assert rows[-1][-1] != "\u2800"


def test_evaluations_are_points_at_their_loss() -> None:
    chart = lines(FALLING, {50: 3.02, 100: 3.9, 0: 4.0, 300: 3.0})
    points = [(number, line.index("●") - LABEL_WIDTH) for number, line in enumerate(chart[1:-2]) if "●" in line]
    assert points == [(0, WIDTH - LABEL_WIDTH - 1), (7, 19)]


def test_first_steps_do_not_flatten_the_others() -> None:
    steep = FALLING | {0: 500.0}
    assert next(line.split("┤")[0].strip() for line in lines(steep, {}) if "┤" in line) == "3.951"


def test_values_that_are_not_finite_are_skipped() -> None:
    assert lines(FALLING | {30: math.nan, 31: math.inf}, {40: math.nan})[1:] != []
    assert lines({0: 1.0, 1: math.nan}, {}) == []
    assert lines({}, {}) == []


def test_chart_is_empty_where_it_could_not_be_read() -> None:
    assert not loss_chart(FALLING, {}, 10, 11)
    assert not loss_chart(FALLING, {}, 48, 4)


def test_equal_losses_are_one_line() -> None:
    rows = [line[LABEL_WIDTH:] for line in lines(dict.fromkeys(range(9), 2.0), {})[1:-2]]
    assert [set(row) != {"\u2800"} for row in rows] == [False] * (HEIGHT - 4) + [True]
