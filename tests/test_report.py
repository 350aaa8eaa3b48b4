"""Reports: whatever is in them is text, they load nothing, and they are written whole."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxgpt.errors import ConfigError
from jaxgpt.utils import html as report

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


@pytest.mark.parametrize("text", ["<!DOCTYPE html>\n<html><body>my thesis", "hi", "<!doctype html>" + report.POLICY])
def test_a_page_of_somebody_else_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no page of ours"):
        report.place("--html", str(path))


def test_our_own_page_and_an_empty_file_give_way(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(report.page("x" * 4000, []))
    assert report.place("--html", str(path)) == path
    path.write_text("")
    assert report.place("--html", str(path)) == path


def test_a_pipe_or_a_device_gives_no_page_its_place(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="no plain file"):
        report.place("--html", str(path))


def test_a_page_is_written_through_a_link_and_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("page.html")
    report.write(tmp_path / "link", report.page("run \udcff", []))
    assert (tmp_path / "link").is_symlink()
    assert "run \\udcff" in (tmp_path / "page.html").read_text()
