"""A run, described: frozen dataclasses that validate themselves, and the files that hold them.

A config file is a Python program that defines `config = Config(...)`; loading one runs it, so read a stranger's
before you do. A run stores its resolved config as JSON, and resume, sample and export read only that.

Each fact has one field. Sizes count tokens, sequences or steps as the field's help says; nothing here loads JAX.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from jaxgpt.config.fields import Section, setting
from jaxgpt.errors import ConfigError

NORM_EPSILON = {"gpt2": 1e-5, "modern": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The network."""

    summary = "The network."

    architecture: Literal["gpt2", "modern"] = setting("gpt2", "gpt2: GPT-2's block; modern: Qwen3's dense block")
    n_layer: int = setting(12, "transformer blocks", least=1)
    n_head: int = setting(12, "attention heads", least=1)
    n_kv_head: int | None = setting(None, "key/value heads of modern (none: as many as n_head)", least=1)
    n_embd: int = setting(768, "width of the residual stream", least=1)
    head_dim: int | None = setting(None, "width of a head (none: n_embd / n_head)", least=1)
    n_inner: int | None = setting(
        None, "width of the MLP (none: gpt2 4 n_embd; modern 8/3 n_embd, up to a 64)", least=1
    )
    block_size: int = setting(1024, "context length in tokens", least=1)
    vocab_size: int = setting(50304, "rows of the embedding and the head; at least the tokenizer's", least=1)
    bias: bool = setting(False, "biases in linear layers and layer norms (gpt2 only)")
    activation: Literal["gelu", "gelu_tanh"] = setting("gelu", "gpt2's MLP: erf GELU (nanoGPT) or tanh (GPT-2)")
    dropout: float = setting(0.0, "dropout on embeddings and residual branches", least=0.0, below=1.0)
    attention_dropout: float = setting(
        0.0, "dropout on attention probabilities; above 0 takes the exact, slower path", least=0.0, below=1.0
    )
    tie_embeddings: bool = setting(True, "the head shares the token embedding's weights")
    rope_theta: float = setting(10_000.0, "base of modern's rotary position encoding", least=1.0)
    norm_eps: float | None = setting(None, "epsilon of the norms (none: gpt2 1e-5, modern 1e-6)", least=0.0, below=1.0)
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "compute type (auto: bfloat16 on a GPU, float32 on a CPU); parameters stay float32"
    )
    attention: Literal["auto", "xla", "cudnn"] = setting(
        "auto", "attention kernel (auto: cudnn on CUDA with bfloat16, otherwise xla)"
    )
    remat: Literal["none", "blocks", "attention"] = setting(
        "none", "what the backward pass computes again instead of keeping it: slower, for less memory"
    )
    loss_chunk: int = setting(4096, "tokens whose logits the loss holds at a time", least=1)

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        wide = 4 * self.n_embd if self.architecture == "gpt2" else 64 * math.ceil(8 * self.n_embd / 3 / 64)
        return self.n_inner or wide

    @property
    def epsilon(self) -> float:
        return NORM_EPSILON[self.architecture] if self.norm_eps is None else self.norm_eps

    def check(self) -> None:
        if self.head_dim is None and self.n_embd % self.n_head:
            near = [n for n in range(1, min(self.n_embd, 10_000) + 1) if self.n_embd % n == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.n_head))[:2])
            raise ConfigError(
                "C010",
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}",
                f"nearest: {', '.join(map(str, near))}",
            )
        if self.architecture == "modern":
            self._check_modern()
        elif self.kv_heads != self.n_head:
            raise ConfigError("C012", f"model.n_kv_head = {self.n_kv_head}; gpt2 has one per head", "leave it out")

    def _check_modern(self) -> None:
        if self.head_size % 2:
            raise ConfigError(
                "C011",
                f"head size {self.head_size} is odd; rotary positions turn pairs of numbers",
                f"choose n_embd and n_head so that n_embd / n_head is even, or --model.head-dim {self.head_size + 1}",
            )
        if self.n_head % self.kv_heads:
            divisors = [n for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise ConfigError(
                "C012",
                f"model.n_kv_head = {self.kv_heads} does not divide n_head = {self.n_head}",
                f"one of: {', '.join(map(str, divisors))}",
            )
        if self.bias:
            raise ConfigError("C021", "model.bias = true; the modern architecture has no biases", "--model.bias false")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """The tokens, and how a step takes them."""

    summary = "The tokens, and how a step takes them."

    path: str = setting("data/tokens", "folder of token shards, as `jaxgpt.prepare` writes it, or nanoGPT's bins")
    corpus: str = setting("", "source of the text, such as fineweb (empty: unknown); plans and forecasts use it")
    unique_tokens: int | None = setting(
        None, "tokens before any repetition, for plans made before `path` exists (none: unknown)", least=1
    )
    sources: tuple[str, ...] = setting(
        (),
        "parquet or text files (or python-stdlib) that train prepares into `path` when it has no shards yet",
    )
    tokenizer: str = setting("gpt2", "tokenizer of that preparation: gpt2 or the path of a tokenizer.json")
    train_tokenizer: int = setting(0, "vocabulary of a new tokenizer that the preparation trains (0: none)", least=0)
    val_tokens: int = setting(0, "size of that preparation's validation split in tokens (0: no split)", least=0)
    micro_batch: int = setting(16, "sequences of a micro-batch, over all devices", least=1)
    accum: int = setting(32, "micro-batches whose gradients make one step", least=1)
    order: Literal["epoch", "random", "sequential"] = setting(
        "epoch",
        "epoch: each window once, shuffled; random: nanoGPT's, with replacement; sequential: as stored",
    )
    seed: int = setting(1337, "seed of the order", least=0, most=2**63 - 1)
    slots: int = setting(4, "step blocks that the loader holds in memory", least=3, most=64)
    threads: int = setting(1, "threads that read blocks ahead", least=1, most=64)


@dataclass(frozen=True, kw_only=True)
class Optim(Section):
    """The optimizer and its schedule."""

    summary = "The optimizer and its schedule."

    optimizer: Literal["adamw"] = setting("adamw", "AdamW, with decay on matrices only")
    learning_rate: float = setting(6e-4, "peak learning rate", least=0.0, most=10.0)
    min_lr: float = setting(6e-5, "learning rate at the end of the decay", least=0.0)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = setting(
        "cosine", "decay after warmup; wsd (trapezoid) holds the peak and falls linearly over decay_steps"
    )
    warmup_steps: int = setting(2000, "steps of linear warmup", least=0)
    decay_steps: int | None = setting(
        None,
        "cosine, linear: the step of min_lr (none: the run's end); wsd: the length of the fall (none: a fifth)",
        least=1,
    )
    beta1: float = setting(0.9, "AdamW's first decay rate", least=0.0, below=1.0)
    beta2: float = setting(0.95, "AdamW's second decay rate", least=0.0, below=1.0)
    eps: float = setting(1e-8, "AdamW's epsilon", least=0.0)
    weight_decay: float = setting(0.1, "decoupled weight decay", least=0.0)
    grad_clip: float = setting(1.0, "largest global gradient norm (0: no clipping)", least=0.0)

    def check(self) -> None:
        if self.schedule != "constant" and self.min_lr > self.learning_rate:
            raise ConfigError(
                "C015",
                f"optim.min_lr = {self.min_lr:g} is above optim.learning_rate = {self.learning_rate:g}",
                f"--optim.min-lr {self.learning_rate / 10:g}",
            )


@dataclass(frozen=True, kw_only=True)
class Mesh(Section):
    """The devices."""

    summary = "The devices."

    device: Literal["auto", "cpu", "gpu"] = setting("auto", "where to run (auto: a GPU if JAX sees one)")
    data_parallel: int | None = setting(None, "devices that share each micro-batch (none: all that JAX sees)", least=1)


@dataclass(frozen=True, kw_only=True)
class Run(Section):
    """The run's length, record and folder."""

    summary = "The run's length, record and folder."

    name: str = setting("run", "name of the run; its folder is `dir`/`name`")
    dir: str = setting("runs", "folder that holds the runs")
    steps: int = setting(20_000, "optimizer steps (nanoGPT's max_iters)", least=1)
    seed: int = setting(1337, "seed of initialisation and dropout", least=0, most=2**31 - 1)
    log_every: int = setting(10, "steps between printed lines; the log holds every step", least=1)
    eval_every: int = setting(500, "steps between evaluations", least=1)
    eval_tokens: int = setting(3_276_800, "tokens of each evaluation, the same ones every time", least=1)
    save_every: int = setting(500, "steps between checkpoints", least=1)
    keep_latest: int = setting(2, "newest checkpoints that are kept", least=1)
    keep_best: int = setting(1, "checkpoints of lowest validation loss that are kept", least=0)
    keep_every: int | None = setting(None, "also keep each checkpoint at a multiple of this step", least=1)
    early_stop: bool = setting(
        False, "end at an evaluation where the run's own diagnosis says that going on is in vain"
    )
    tensorboard: bool = setting(True, "write TensorBoard files where the extra `tensorboard` is installed")
    sample_prompt: str = setting("", "text that a sample continues at the end of the run (empty: no sample)")
    sample_tokens: int = setting(200, "tokens of that sample", least=1)

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(
                "C019",
                f"run.name = {self.name!r} cannot name a folder",
                "use letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Sections check themselves; what spans two sections is checked here."""

    model: Model = Model()
    data: Data = Data()
    optim: Optim = Optim()
    mesh: Mesh = Mesh()
    run: Run = Run()

    def __post_init__(self) -> None:
        for name, kind in sections().items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError("C007", f"{name} = {getattr(self, name)!r}; a {kind.__name__}(...) is needed")
        if self.optim.warmup_steps > self.run.steps:
            raise ConfigError(
                "C014",
                f"optim.warmup_steps = {self.optim.warmup_steps} is longer than the run (run.steps = {self.run.steps})",
                f"--optim.warmup-steps {max(self.run.steps // 10, 1)}",
            )
        fall = self.optim.decay_steps
        if self.optim.schedule == "wsd" and fall is not None and fall + self.optim.warmup_steps > self.run.steps:
            raise ConfigError(
                "C014",
                f"optim.warmup_steps + decay_steps = {self.optim.warmup_steps + fall}; run.steps = {self.run.steps}",
                "shorten one of them",
            )
        if self.optim.schedule in ("cosine", "linear") and fall is not None and fall < self.optim.warmup_steps:
            raise ConfigError(
                "C014",
                f"optim.decay_steps = {fall} ends before optim.warmup_steps = {self.optim.warmup_steps}",
                "the decay ends at the step optim.decay_steps, counted from the start",
            )

    @property
    def tokens_per_step(self) -> int:
        return self.data.micro_batch * self.data.accum * self.model.block_size

    def replace(self, changes: dict[str, dict[str, Any]]) -> Self:
        """This config with `{"section": {"field": value}}` changed, checked anew as a whole."""
        new = {name: dataclasses.replace(getattr(self, name), **changed) for name, changed in changes.items()}
        return dataclasses.replace(self, **new)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain JSON values, section by section; `from_dict` gives the config back."""
        return {name: _plain(getattr(self, name)) for name in sections()}

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> Self:
        """Raises `ConfigError` for a field that this version does not know."""
        known = sections()
        unknown = [name for name in values if name not in known]
        for name, kind in known.items():
            names = {field.name for field in fields(kind)}
            unknown += [f"{name}.{field}" for field in values.get(name, {}) if field not in names]
        if unknown:
            raise ConfigError("C005", f"unknown field {unknown[0]!r}", "it was written by another version of jaxgpt")
        return cls(**{name: kind(**_tuples(values.get(name, {}))) for name, kind in known.items()})


def sections() -> dict[str, type[Any]]:
    """The sections of `Config` in order."""
    return {field.name: field.type for field in fields(Config)}  # type: ignore[misc]


def _plain(section: Any) -> dict[str, Any]:
    values = {field.name: getattr(section, field.name) for field in fields(section)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
