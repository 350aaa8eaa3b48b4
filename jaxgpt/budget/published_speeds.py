"""Published training speeds, which `jaxgpt.budget.speed` is fitted to and tested with: `published_speeds.csv`.

Columns: program; device and number of devices; shape of the model (`tied`: one matrix for embedding and head);
micro-batch per device and accumulation; tokens per second and device; whether the software is from before 2024, when
PyTorch's compiler and attention were slower; whether the pair counts in the test; source.
"""

import csv
from dataclasses import dataclass
from importlib import resources

from jaxgpt.budget.devices import DEVICES, Device
from jaxgpt.config import Config


@dataclass(frozen=True, kw_only=True)
class PublishedSpeed:
    """A published speed: `seconds` of a step of `config`, which all `gpus` devices share."""

    program: str
    device: Device
    gpus: int
    config: Config
    seconds: float
    is_old: bool
    is_tested: bool
    source: str


def load() -> list[PublishedSpeed]:
    """All published speeds."""
    text = resources.files("jaxgpt.budget").joinpath("published_speeds.csv").read_text(encoding="utf-8")
    return [_read(row) for row in csv.DictReader(text.splitlines())]


def _read(row: dict[str, str]) -> PublishedSpeed:
    gpus = int(row["gpus"])
    heads, kv_heads = int(row["heads"]), int(row["kv_heads"])
    is_grouped = kv_heads != heads
    model = {
        "architecture": "modern" if is_grouped else "gpt2",
        "n_layer": int(row["layers"]),
        "n_embd": int(row["width"]),
        "n_head": heads,
        "n_kv_head": kv_heads if is_grouped else None,
        "n_inner": int(row["inner"]),
        "vocab_size": int(row["vocabulary"]),
        "block_size": int(row["context"]),
        "tie_embeddings": row["tied"] == "1",
    }
    data = {"micro_batch": gpus * int(row["micro_batch"]), "accum": int(row["accum"])}
    config = Config().replace({"model": model, "data": data})
    return PublishedSpeed(
        program=row["program"],
        device=DEVICES[row["device"]],
        gpus=gpus,
        config=config,
        seconds=config.tokens_per_step / (gpus * float(row["tokens_per_second"])),
        is_old=row["old"] == "1",
        is_tested=row["tested"] == "1",
        source=row["source"],
    )
