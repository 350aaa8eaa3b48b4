"""Reports as JSON."""

import math
from typing import Any

from jaxgpt.utils.report.document import Code, Command, Figure, Items, Paragraph, Report, Table


def to_json(report: Report) -> dict[str, Any]:
    """The `summary`, `report.data` and, under `report`, the sections as plain JSON values.

    Numbers that are not finite become None and tuples become lists.
    """
    sections = [
        {"title": section.title, "blocks": [_block(block) for block in section.blocks]} for section in report.sections
    ]
    values: dict[str, Any] = finite({"summary": report.summary} | report.data | {"report": sections})
    return values


def finite(value: Any) -> Any:
    """`value` as JSON can represent it: numbers that are not finite become None, tuples become lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _block(block: Any) -> dict[str, Any]:
    match block:
        case Paragraph(text):
            return {"paragraph": text}
        case Items(texts):
            return {"items": texts}
        case Table(columns, rows):
            return {"columns": columns, "rows": rows}
        case Command(text):
            return {"command": text}
        case Code(text):
            return {"code": text}
        case Figure(caption):
            return {"figure": caption}
    raise TypeError(f"not a block of a report: {block!r}")
