"""How tokens are drawn. Loads no JAX, so that a wrong option is answered without it."""

from dataclasses import dataclass

from jaxgpt.errors import ConfigError


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn.

    `temperature` 0 takes the most likely token; `top_k` 0 and `top_p` 1 exclude none. Raises `ConfigError` C009 for a
    value out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("C009", f"temperature = {self.temperature}; must be 0 or more")
        if self.top_k < 0:
            raise ConfigError("C009", f"top-k = {self.top_k}; must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError("C009", f"top-p = {self.top_p}; must be above 0 and at most 1")
