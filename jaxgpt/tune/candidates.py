"""The programs that `tune` tries: changes to a config that leave the run's numbers as they are, but for rounding."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxgpt.config import Config

Changes = dict[str, dict[str, Any]]
LOSS_CHUNKS = (512, 1024, 2048, 4096, 8192, 16_384)
MAX_SPLIT_FACTOR = 8  # between the config's micro-batch and a candidate's
GPU_COMPILER_OPTIONS = (
    "xla_gpu_enable_triton_gemm=false",
    "xla_gpu_enable_latency_hiding_scheduler=true",
    "xla_gpu_exhaustive_tiling_search=true",
)


class Candidate(NamedTuple):
    """A config to measure, and what it changes."""

    name: str
    changes: Changes

    def apply(self, config: Config) -> Config:
        return config.replace(self.changes)

    def with_option(self, name: str, section: str, values: dict[str, Any]) -> "Candidate":
        """This candidate with further changes of one section."""
        changed = self.changes | {section: self.changes.get(section, {}) | values}
        return Candidate(name if not self.changes else f"{self.name}, {name}", changed)


DEFAULT = Candidate("the config as it is", {})


class Dimension(NamedTuple):
    """One choice that a step leaves open: its options are tried on top of the best of the dimensions before."""

    title: str
    section: str
    options: list[tuple[str, dict[str, Any]]]

    def candidates(self, best: Candidate) -> list[Candidate]:
        return [best, *(best.with_option(name, self.section, values) for name, values in self.options)]


def dimensions(config: Config, device: dict[str, Any]) -> Iterator[Dimension]:
    """What is tried for `config`, in order: the largest effect first. `device` is as a trial describes it."""
    yield Dimension("micro-batch", "data", list(_splits(config, device["count"])))
    yield Dimension("loss chunk", "model", list(_loss_chunks(config)))
    yield Dimension("recomputation", "model", _others("remat", config.model.remat, ("none", "attention", "blocks")))
    if device["platform"] == "gpu":
        yield Dimension("attention", "model", _others("attention", device["attention"], ("cudnn", "xla")))
        yield Dimension("compiler", "mesh", list(_compiler_options(config.mesh.compiler_options)))


def _splits(config: Config, devices: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other divisions of the step's sequences into micro-batches."""
    micro_batch = config.data.micro_batch
    sequences = micro_batch * config.data.accum
    for size in range(devices, sequences + 1, devices):
        is_near = micro_batch / MAX_SPLIT_FACTOR <= size <= micro_batch * MAX_SPLIT_FACTOR
        if sequences % size == 0 and is_near and size != micro_batch:
            yield f"micro-batch {size}", {"micro_batch": size, "accum": sequences // size}


def _loss_chunks(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    for tokens in LOSS_CHUNKS:
        if tokens != config.model.loss_chunk and tokens <= config.tokens_per_step:
            yield f"loss chunk {tokens}", {"loss_chunk": tokens}


def _compiler_options(given: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One more compiler option, beside those of the config; none that it sets itself."""
    names = {text.partition("=")[0] for text in given}
    for text in GPU_COMPILER_OPTIONS:
        if text.partition("=")[0] not in names:
            yield text, {"compiler_options": (*given, text)}


def _others(field: str, current: str, values: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{field} {value}", {field: value}) for value in values if value != current]
