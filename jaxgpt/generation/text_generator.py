"""The Python API: `jaxgpt.load(RUN).generate(PROMPT)`."""

from collections.abc import Iterator
from pathlib import Path

from jaxgpt.generation import sampler
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.runs.folder import find_run
from jaxgpt.training import jax_setup
from jaxgpt.training.loaded_model import LoadedModel, load_model


class TextGenerator:
    """Generates text with the model of a run's checkpoint. The same seed gives the same text."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @classmethod
    def load(cls, run: str | Path, step: str | int = "latest") -> "TextGenerator":
        """The model of `run`, a run folder or a run's name under runs/, after `step`: a number, "latest" or "best".

        Raises `ConfigError` C024 if there is no such run, and `CheckpointError` if its checkpoint cannot be read.
        """
        reference = find_run(str(run), str(step))
        jax_setup.configure_jax()
        return cls(load_model(reference))

    def generate(
        self,
        prompt: str = "",
        tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 1337,
        stop: str | None = None,
    ) -> str:
        """The text that follows `prompt`, without it: at most `tokens` tokens, ended before the text `stop`."""
        pieces = self.stream(prompt, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop)
        return "".join(pieces)

    def stream(
        self,
        prompt: str = "",
        tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 1337,
        stop: str | None = None,
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as they are made."""
        sampling = SamplingOptions(temperature, top_k, top_p)
        return sampler.stream_text(self.model, prompt, count=tokens, sampling=sampling, seed=seed, stop=stop)
