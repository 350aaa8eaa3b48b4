"""JSON that detects its own damage: the last value is the checksum of the text without it."""

import json
from collections.abc import Mapping
from typing import Any

from jaxgpt import _loader

CHECKSUM = "checksum"


def seal(values: Mapping[str, Any]) -> str:
    """The text of `values` as a JSON object, with the checksum as its last value."""
    checksum = _loader.hash_bytes(_to_text(values).encode())
    return _to_text({**values, CHECKSUM: checksum})


def unseal(text: str) -> dict[str, Any]:
    """The values of a sealed text. Raises `ValueError` if any byte of it differs from what `seal` returned."""
    values = json.loads(text)
    if not isinstance(values, dict) or CHECKSUM not in values:
        raise ValueError("it has no checksum")
    del values[CHECKSUM]
    if seal(values) != text:
        raise ValueError("its checksum does not match")
    return values


def _to_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
