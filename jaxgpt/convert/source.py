"""Where the weights of `run.init_from` come from: a file, a folder, or a repository of the Hugging Face hub."""

from pathlib import Path

from jaxgpt.convert import huggingface, nanogpt
from jaxgpt.convert.weights import Weights
from jaxgpt.data import hub
from jaxgpt.errors import ConfigError, did_you_mean

NANOGPT_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
KINDS = "a model folder of Hugging Face, nanoGPT's ckpt.pt, or OWNER/NAME of a model on the hub"


def read_weights(name: str) -> Weights:
    """The weights `name`: those of a folder or file on this disk, else of the hub.

    Raises `ConfigError` C081 if there is none, C080 if jaxgpt does not have this network, C034 to C036 if the hub
    cannot be used, and `DataError` D046 if the file cannot be read.
    """
    path = _find(name)
    return huggingface.read_weights(path) if path.is_dir() else nanogpt.read_checkpoint(path)


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent if path.name in (huggingface.WEIGHTS, huggingface.CONFIG) else path
    repository = NANOGPT_NAMES.get(name, name)
    is_local = path.suffix in FILE_SUFFIXES or (path.parent != Path() and path.parent.is_dir())
    if hub.REPOSITORY.fullmatch(repository) and not is_local:
        return hub.fetch_model(repository, huggingface.PATTERNS)
    raise ConfigError("C081", f"there are no weights {name!r}", f"{did_you_mean(name, NANOGPT_NAMES)}{KINDS}")
