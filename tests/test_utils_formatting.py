"""Numbers as a person reads them: signs, plurals, and no more digits than an estimate has."""

import pytest

from jaxgpt.utils import formatting

HOUR, DAY = 3600, 86_400


def test_durations_are_formatted_in_words() -> None:
    assert [formatting.format_duration(s) for s in (0.4, 59.4, 60, 250, HOUR, 23_520, DAY, 2 * DAY + 3 * HOUR)] == [
        *("0 s", "59 s", "1 min 0 s", "4 min 10 s", "1 h 0 min", "6 h 32 min", "1 day 0 h", "2 days 3 h")
    ]
    assert formatting.format_duration(23_571, parts=3) == "6 h 32 min 51 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (7.4, "7 s"),
        (45, "45 s"),
        (97, "1 min 35 s"),
        (250, "4 min 10 s"),
        (840, "14 min"),
        (6 * HOUR + 32 * 60 + 51, "6 h 30 min"),
        (5 * HOUR + 53 * 60, "6 h"),
        (8 * HOUR + 11 * 60, "8 h"),
        (29.2 * HOUR, "29 h"),
        (3 * DAY + 2 * HOUR, "3 days"),
        (40.4 * DAY, "40 days"),
    ],
)
def test_rough_durations_have_no_false_precision(seconds: float, text: str) -> None:
    assert formatting.format_rough_duration(seconds) == text


def test_rough_durations_are_within_five_percent() -> None:
    units = {"s": 1, "min": 60, "h": HOUR, "day": DAY, "days": DAY}
    for tenths in range(100, 400):
        seconds = 2 ** (tenths / 20)
        words = formatting.format_rough_duration(seconds).split()
        rounded = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
        assert rounded == pytest.approx(seconds, rel=0.0501)


def test_a_range_of_hours_has_the_unit_of_its_middle() -> None:
    assert formatting.format_hours_range(23 * HOUR, 43.4 * HOUR, 29 * HOUR) == "23–43"
    assert formatting.format_hours_range(60, 300, 120) == "1.0–5.0"
    assert [formatting.format_hours(s) for s in (None, 89, 840, 80_000, 5 * DAY)] == [
        *("–", "89 s", "14 min", "22.2 h", "5.0 days")
    ]


def test_differences_have_one_sign() -> None:
    assert [formatting.format_signed(x) for x in (0.12, -0.781, -0.0004, 0, -1234.5, None)] == [
        *("+0.120", "−0.781", "0.000", "0.000", "−1,234.500", "–")
    ]
    assert [formatting.format_change(x) for x in (-0.231, 0.05, -0.004)] == ["0.23 lower", "0.05 higher", "the same"]


def test_nouns_agree_with_their_numbers() -> None:
    assert [formatting.pluralize(n, "hour") for n in (0, 1, 1.0, 1.5, 2, 1_100)] == [
        *("0 hours", "1 hour", "1 hour", "1.5 hours", "2 hours", "1,100 hours")
    ]
    assert [formatting.pluralize(n, "loss", "losses") for n in (1, 2)] == ["1 loss", "2 losses"]


def test_large_numbers_have_units() -> None:
    assert [formatting.format_count(n) for n in (8_192, 40_560_000, 10.49e9, 2e12)] == [
        *("8,192", "40.56M", "10.49B", "2.00T")
    ]
    assert [formatting.format_tokens(n) for n in (8_192, 479_800_000, 999_700_000, 2.52e9)] == [
        *("8,192", "480M", "999.70M", "2.52B")
    ]
    assert [formatting.format_bytes(n) for n in (1, 999, 31_400_000, 2e9)] == [
        *("1 byte", "999 bytes", "31.4 MB", "2.0 GB")
    ]
    assert [formatting.format_flops(n) for n in (12, 3.15e18)] == ["12 FLOP", "3.15 EFLOP"]


def test_an_interval_decides_the_precision() -> None:
    assert formatting.format_losses(3.5187, 3.5021, 3.5359) == ("3.519", "3.502", "3.536")
    assert formatting.format_losses(3.53, 3.48, 3.58) == ("3.53", "3.48", "3.58")
    assert formatting.format_losses(4.38, 4.0, 4.7) == ("4.38", "4.00", "4.70")
    assert formatting.format_losses(8.782, 5.554, 12.01) == ("8.8", "5.6", "12.0")
    assert formatting.format_duration_interval(23571, 21213, 29463) == "6 h 30 min (80 %: 5 h 50 min to 8 h 10 min)"
