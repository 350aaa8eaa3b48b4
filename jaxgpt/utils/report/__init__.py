"""One document model for every answer: build a `Report`, then print it, write it as HTML or dump it as JSON.

    report = Report("Plan of quickstart", summary=("It takes 3 minutes.",), sections=(Section("Time", blocks),))
    print_report(report)

The three renderers read the same blocks, so they cannot disagree. Strings are plain text everywhere: the renderers
escape what their medium would interpret.
"""

from jaxgpt.utils.report.document import Block, Code, Command, Figure, Items, Paragraph, Report, Section, Table
from jaxgpt.utils.report.html_renderer import html_page
from jaxgpt.utils.report.json_renderer import to_json
from jaxgpt.utils.report.terminal_renderer import print_report

__all__ = [
    "Block",
    "Code",
    "Command",
    "Figure",
    "Items",
    "Paragraph",
    "Report",
    "Section",
    "Table",
    "html_page",
    "print_report",
    "to_json",
]
