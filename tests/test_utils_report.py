"""Reports: contents are text in every medium, pages load nothing, and files are written atomically."""

import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.html import Reader
from rich.console import Console

from jaxgpt.errors import ConfigError
from jaxgpt.utils import files
from jaxgpt.utils.report import (
    Code,
    Command,
    Figure,
    Items,
    Paragraph,
    Report,
    Section,
    Table,
    html_page,
    print_report,
    to_json,
)
from jaxgpt.utils.report.html_renderer import POLICY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INJECTION = "<script>alert('1')</script> & \"quotes\" é [bold]"


def draw(axes: "Axes") -> None:
    axes.plot([1, 2, 3], [1, 4, 9], label=INJECTION)
    axes.set_xlabel(INJECTION)
    axes.legend()


def figure(caption: str = "A line.") -> Figure:
    return Figure(caption, draw, as_text=lambda width: "•" * width)


def report(*blocks: Paragraph | Items | Table | Command | Code | Figure, title: str = "x") -> Report:
    return Report(title, summary=("First.",), sections=(Section("Part", blocks),))


def test_contents_are_text_in_a_page() -> None:
    blocks = [Paragraph(INJECTION), Items((INJECTION,)), Command(INJECTION), Code(INJECTION), figure(INJECTION)]
    blocks += [Table((INJECTION, "n"), ((INJECTION, "1"),))]
    page = Reader(html_page(Report(INJECTION, summary=(INJECTION,), sections=(Section(INJECTION, tuple(blocks)),))))
    assert "script" not in page.tags
    assert page.text.count(INJECTION) >= 11  # title, h1, summary, h2, p, li, command, code, caption, th, td
    assert ("aria-label", INJECTION) in page.attributes


def test_contents_are_text_on_a_terminal() -> None:
    screen = io.StringIO()
    blocks = (
        Paragraph(INJECTION),
        Items((INJECTION,)),
        Command(INJECTION),
        Code(INJECTION),
        Table((INJECTION,), ((INJECTION,),)),
    )
    console = Console(file=screen, width=80)
    print_report(Report("x", sections=(Section("Part", blocks), Section("Empty", ()))), console)
    text = screen.getvalue()
    assert text.count(INJECTION) == 6
    assert "Empty" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_every_medium_has_the_same_contents() -> None:
    document = report(Paragraph("A sentence."), Table(("name", "loss"), (("run", "3.5"),)), figure())
    screen = io.StringIO()
    print_report(document, Console(file=screen, width=80))
    page = Reader(html_page(document)).text
    values = json.dumps(to_json(document))
    for text in ("First.", "Part", "A sentence.", "name", "run", "3.5", "A line."):
        assert text in screen.getvalue()
        assert text in page
        assert text in values


def test_json_has_only_finite_numbers() -> None:
    document = Report("x", data={"a": float("nan"), "b": (1, float("inf")), "c": {"d": 2.5}})
    assert to_json(document) == {"a": None, "b": [1, None], "c": {"d": 2.5}, "summary": [], "report": []}


def test_figures_are_reproducible() -> None:
    page = html_page(report(figure()))
    assert "<path" in page
    assert page == html_page(report(figure()))
    assert page != html_page(report(figure("Another.")))


def test_page_loads_nothing() -> None:
    page = html_page(report(figure()))
    links = {
        name for name, value in Reader(page).attributes if name in ("src", "href", "xlink:href") and value[0] != "#"
    }
    assert not links
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!#)", page)


def test_figures_suit_both_widths_and_color_schemes() -> None:
    page = html_page(report(figure()))
    assert re.findall(r'<svg class="(\w+)"', page) == ["wide", "narrow"]
    assert "var(--text)" in page
    figures = page[page.index("<figure") : page.index("</figure>")]
    assert not re.search(r"(fill|stroke): #(000000|ffffff)", figures)  # invisible on a page of that color
    style = page[: page.index("</style>")]
    assert "prefers-color-scheme: dark" in style
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert all(style.count(f"{name}:") == 2 for name in used)  # in the light and in the dark scheme
    ids = re.findall(r'<path id="(m\w+)"', figures)
    assert len(ids) == len(set(ids))  # markers of a hidden figure cannot be used by the other one


def test_wide_tables_become_cards_on_a_phone() -> None:
    short = Table(("", "planned"), (("steps", "60"),))
    wide = Table(("", "steps", "loss", "80 %"), (("as it runs", "60", "3.5", "3.4–3.6"),))
    long = Table(("n", "begins"), (("1", "word " * 20),))
    page = html_page(report(short, wide, long))
    assert re.findall(r"<table( class=\"cards\")?>", page) == ["", ' class="cards"', ' class="cards"']
    assert '<td class="title">as it runs</td>' in page
    assert '<td class="number" data-label="80 %">3.4–3.6</td>' in page
    assert '<td class="long" data-label="begins">' in page


def test_table_without_column_names_has_no_head() -> None:
    page = html_page(report(Table(("", ""), (("model", "small"),))))
    assert "<thead>" not in page


def test_columns_of_numbers_are_right_aligned() -> None:
    table = Table(("word", "number", "mixed"), (("a", "1,000", "1"), ("b", "–", "x"), ("c", "−3", "2")))
    page = html_page(report(table))
    assert re.findall(r"<th( class=\"number\")?>", page) == ["", ' class="number"', ""]
    assert page.count('class="number"') == 4
    screen = io.StringIO()
    print_report(report(table), Console(file=screen, width=80))
    lines = [line for line in screen.getvalue().splitlines() if line.startswith(("a", "b"))]
    assert [line.split()[1] for line in lines] == ["1,000", "–"]
    assert lines[0].index("0 1") == lines[1].index("– x")


def test_files_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    files.write_text(path, "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["<!DOCTYPE html>\n<html><body>my thesis", "hi", "<!doctype html>" + POLICY])
def test_pages_of_others_are_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a report of jaxgpt"):
        files.check_report_path("--html", path)


def test_older_reports_and_empty_files_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(html_page(Report("x" * 4000)))
    assert files.check_report_path("--html", path) == path
    path.write_text("")
    assert files.check_report_path("--html", path) == path


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        files.check_report_path("--html", path)


def test_links_are_followed_and_any_title_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("page.html")
    files.write_text(tmp_path / "link", html_page(Report("run \udcff")))
    assert (tmp_path / "link").is_symlink()
    assert "run \\udcff" in (tmp_path / "page.html").read_text()
