"""Reports: whatever is in them is text, they load nothing, and they are written whole."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxgpt import report

NASTY = "<script>alert('1')</script> & \"quotes\" é"


class Reader(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def plot(caption: str = "A line.") -> report.Block:
    with report.figure(caption) as drawn:
        drawn.axes.plot([1, 2, 3], [1, 4, 9], label=NASTY)
        drawn.axes.set_xlabel(NASTY)
        drawn.axes.legend()
    return drawn.block


def test_whatever_is_given_is_text() -> None:
    blocks = [report.heading(NASTY), report.paragraph(NASTY), report.table([NASTY, "n"], [[NASTY, 1]]), plot(NASTY)]
    page = Reader(report.page(NASTY, blocks))
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 7  # title, h1, h2, p, th, td, caption
    assert ("aria-label", NASTY) in page.attributes


def test_a_plot_stands_in_the_page_and_is_the_same_each_time() -> None:
    block = plot()
    assert "<path" in block
    assert block == plot()
    assert block != plot("Another.")


def test_a_page_loads_nothing() -> None:
    page = report.page("x", [plot()])
    names = {
        name for name, value in Reader(page).attributes if name in ("src", "href", "xlink:href") and value[0] != "#"
    }
    assert not names
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!#)", page)


def test_numbers_are_set_flush_right_and_words_are_not() -> None:
    table = report.table(["word", "number", "mixed"], [["a", "1,000", "1"], ["b", "–", "x"], ["c", "−3", "2"]])
    assert re.findall(r"<th( class=\"number\")?>", table) == ["", ' class="number"', ""]
    assert table.count('class="number"') == 4


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    report.write(path, "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.write(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
