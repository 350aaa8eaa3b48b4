"""Whether a config's name and comments say the size that its model has."""

import re

from jaxgpt.config import Config
from jaxgpt.config.model_size import non_embedding_parameters, parameters, positions

TOLERANCE = 0.15  # 124M for 123.6M, 40m for 40.56M, and people's rounding
UNIT = {"k": 1e3, "m": 1e6, "b": 1e9}
IN_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)([mb])(?![a-z])", re.IGNORECASE)
IN_TEXT = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s?([MB])\b[\s-]*(?=param|model|weights|GPT|transformer|network)"
    r"|(?:GPT-?2?|model|parameters?|params?)\s*(?:of|:|=|\()?\s*~?(\d+(?:\.\d+)?)\s?([MB])\b(?!\s*(?:different|unique)?\s*tok)",
    re.IGNORECASE,
)


def size_warnings(name: str, text: str, config: Config) -> list[str]:
    """A sentence for each place, name or text, that states another size than the model's."""
    model = config.model
    total = parameters(model)
    counts = (total, non_embedding_parameters(model), total + positions(model))
    stated = [(f"the name {word!r}", size) for word in (name, config.run.name) for size in _sizes(IN_NAME, word)]
    stated += [("the config's text", size) for size in _sizes(IN_TEXT, text)]
    found: dict[float, str] = {}
    for place, size in stated:
        if not any(abs(size / count - 1) <= TOLERANCE for count in counts):
            found.setdefault(size, f"{place} says {shown(size)}, but the model has {total / 1e6:.2f}M parameters")
    return list(found.values())


def shown(size: float) -> str:
    return f"{size / 1e9:g}B" if size >= 1e9 else f"{size / 1e6:g}M"


def _sizes(pattern: re.Pattern[str], text: str) -> list[float]:
    sizes = []
    for match in pattern.finditer(text):
        number, unit = [group for group in match.groups() if group is not None]
        sizes.append(float(number) * UNIT[unit.lower()])
    return sizes
