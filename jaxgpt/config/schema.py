"""What a run is: frozen dataclasses, a section for each part of it, that check themselves when they are made.

Each fact has one field. Sizes count tokens, sequences or steps, as the field's help says. Nothing here loads JAX.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from jaxgpt.config.fields import Section, field, field_types
from jaxgpt.errors import ConfigError
from jaxgpt.optimizers import SUMMARIES, OptimizerName

RENAMED = {"data.slots": "data.prefetch_buffers", "run.tensorboard": "run.trackers"}  # of older config.json files
NORM_EPSILON = {"gpt2": 1e-5, "modern": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The network."""

    architecture: Literal["gpt2", "modern"] = field("gpt2", "gpt2: GPT-2's block; modern: Qwen3's dense block")
    n_layer: int = field(12, "transformer blocks", ge=1)
    n_head: int = field(12, "attention heads", ge=1)
    n_kv_head: int | None = field(None, "key/value heads, modern only (none: n_head)", ge=1)
    n_embd: int = field(768, "width of the residual stream", ge=1)
    head_dim: int | None = field(None, "width of an attention head (none: n_embd / n_head)", ge=1)
    n_inner: int | None = field(
        None, "width of the MLP (none: gpt2 4 n_embd; modern 8/3 n_embd, rounded up to a multiple of 64)", ge=1
    )
    block_size: int = field(1024, "context length in tokens", ge=1)
    vocab_size: int = field(
        50304, "rows of the token embedding and the LM head; at least the tokenizer's vocabulary", ge=1
    )
    bias: bool = field(False, "biases in linear layers and layer norms (gpt2 only)")
    activation: Literal["gelu", "gelu_tanh"] = field(
        "gelu", "activation of gpt2's MLP: exact GELU (nanoGPT) or its tanh approximation (GPT-2)"
    )
    dropout: float = field(0.0, "dropout on embeddings and residual branches", ge=0.0, lt=1.0)
    attention_dropout: float = field(
        0.0,
        "dropout on attention probabilities; above 0 needs the slower attention without a fused kernel",
        ge=0.0,
        lt=1.0,
    )
    tie_embeddings: bool = field(True, "share weights between the token embedding and the LM head")
    rope_theta: float = field(10_000.0, "base of RoPE (modern only)", ge=1.0)
    norm_eps: float | None = field(None, "epsilon of the norms (none: gpt2 1e-5, modern 1e-6)", ge=0.0, lt=1.0)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        "auto",
        "dtype of activations (auto: bfloat16 on a GPU, float16 with loss scaling on T4, V100 and RTX 20, float32 on a "
        "CPU); parameters stay float32",
    )
    attention: Literal["auto", "xla", "cudnn"] = field(
        "auto", "attention kernel (auto: cudnn on CUDA with bfloat16, otherwise xla)"
    )
    remat: Literal["none", "blocks", "attention"] = field(
        "none", "activations that the backward pass recomputes instead of storing: less memory, slower"
    )
    loss_chunk: int = field(4096, "tokens per chunk of the loss; only a chunk's logits are in memory", ge=1)

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
                f"head size {self.head_size} is odd; RoPE rotates pairs of numbers",
                f"choose n_embd and n_head so that n_embd / n_head is even, or --model.head-dim {self.head_size + 1}",
            )
        if self.n_head % self.kv_heads:
            divisors = [n for n in range(1, min(self.n_head, 10_000) + 1) if self.n_head % n == 0]
            raise ConfigError(
                "C012",
                f"model.n_kv_head = {self.kv_heads} does not divide n_head = {self.n_head}",
                f"one of: {', '.join(map(str, divisors))}",
            )
        if self.bias:
            raise ConfigError("C021", "model.bias = true; the modern architecture has no biases", "--model.bias false")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """The tokens, and how steps are made of them."""

    path: str = field("data/tokens", "folder of token shards, as `jaxgpt.prepare` writes it, or nanoGPT's bins")
    corpus: str = field("", "source of the text, such as fineweb (empty: unknown); plans and forecasts use it")
    unique_tokens: int | None = field(
        None, "tokens before any repetition, for plans made before `path` exists (none: unknown)", ge=1
    )
    sources: tuple[str, ...] = field(
        (),
        "parquet or text files (or python-stdlib) that train prepares into `path` if it has no shards",
    )
    tokenizer: str = field("gpt2", "tokenizer for `sources`: gpt2, char (characters), or the path of a tokenizer.json")
    train_tokenizer: int = field(0, "train a tokenizer of this many tokens on `sources` (0: do not)", ge=0)
    val_tokens: int | None = field(
        None,
        "tokens of the validation split made from `sources` (none: a tenth of a single text, no split of several)",
        ge=0,
    )
    micro_batch: int = field(16, "sequences per micro-batch, over all devices", ge=1)
    accum: int = field(32, "gradient accumulation: micro-batches per step", ge=1)
    order: Literal["epoch", "random", "sequential"] = field(
        "epoch",
        "epoch: each window once per epoch, shuffled; random: with replacement (nanoGPT); sequential: as stored",
    )
    block_cross_document_attention: bool = field(
        False, "a token attends only to tokens of its own document; the tokens need an end-of-text token"
    )
    seed: int = field(1337, "seed of the data order", ge=0, le=2**63 - 1)
    prefetch_buffers: int = field(4, "steps of data that the loader holds in memory", ge=3, le=64)
    threads: int = field(1, "threads that read ahead", ge=1, le=64)


@dataclass(frozen=True, kw_only=True)
class Optim(Section):
    """The optimizer and its schedule."""

    optimizer: OptimizerName = field("adamw", SUMMARIES + "; embeddings, LM head and vectors always have AdamW")
    learning_rate: float = field(6e-4, "peak learning rate", ge=0.0, le=10.0)
    adamw_lr: float | None = field(
        None,
        "peak learning rate of the parameters that have AdamW beside another optimizer (none: learning_rate); it "
        "decays as the learning rate does",
        ge=0.0,
        le=10.0,
    )
    min_lr: float = field(6e-5, "learning rate at the end of the decay", ge=0.0)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = field(
        "cosine", "decay after warmup; wsd (trapezoid) keeps the peak, then decays linearly over decay_steps"
    )
    warmup_steps: int = field(2000, "steps of linear warmup", ge=0)
    decay_steps: int | None = field(
        None,
        "cosine, linear: step that reaches min_lr (none: the last); wsd: steps of decay (none: a fifth of the run)",
        ge=1,
    )
    beta1: float = field(0.9, "AdamW's beta1", ge=0.0, lt=1.0)
    beta2: float = field(0.95, "AdamW's beta2", ge=0.0, lt=1.0)
    eps: float = field(1e-8, "AdamW's epsilon", ge=0.0)
    momentum: float = field(0.95, "Muon's momentum", ge=0.0, lt=1.0)
    momentum_warmup: int = field(0, "steps in which Muon's momentum rises from 0.85 to `momentum`", ge=0)
    weight_decay: float = field(0.1, "decoupled weight decay", ge=0.0)
    grad_clip: float = field(1.0, "clip the global gradient norm to this (0: no clipping)", ge=0.0)

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

    device: Literal["auto", "cpu", "gpu"] = field(
        "auto", "where to run (auto: a GPU if JAX sees one)", parse=lambda text: {"cuda": "gpu"}.get(text, text)
    )
    data_parallel: int | None = field(
        None, "groups of devices that split each micro-batch and hold all weights (none: as many as JAX sees)", ge=1
    )
    fsdp: int = field(
        1, "devices of a group, which split its part of the micro-batch and the weights and optimizer state", ge=1
    )
    compiler_options: tuple[str, ...] = field(
        (), "XLA options of the training step, such as xla_gpu_enable_triton_gemm=false", metavar="NAME=VALUE"
    )

    @property
    def count(self) -> int:
        """The devices, one group if the config leaves their number to JAX."""
        return (self.data_parallel or 1) * self.fsdp

    def check(self) -> None:
        for text in self.compiler_options:
            if not re.fullmatch(r"xla_\w+=.+", text):
                message = f"mesh.compiler_options has {text!r}; must be xla_NAME=VALUE"
                raise ConfigError("C009", message, "--mesh.compiler-options xla_gpu_enable_triton_gemm=false")


@dataclass(frozen=True, kw_only=True)
class Run(Section):
    """The run's length, logging, evaluation, checkpoints and folder."""

    name: str = field("run", "name of the run; its folder is `dir`/`name`")
    dir: str = field("runs", "folder of all runs")
    init_from: str = field(
        "",
        "weights to start from, which also set the network: a Hugging Face model folder, nanoGPT's ckpt.pt, or "
        "OWNER/NAME on the hub (empty: random weights)",
        parse=lambda text: "" if text in ("scratch", "resume") else text,  # nanoGPT's names
    )
    export: Literal["none", "hf"] = field(
        "none", "also write the final model as a Hugging Face folder, `dir`/`name`/export/hf-STEP"
    )
    steps: int = field(20_000, "optimizer steps (nanoGPT's max_iters)", ge=1, le=100_000_000)
    seed: int = field(1337, "seed of initialization and dropout", ge=0, le=2**31 - 1)
    log_every: int = field(10, "steps between printed lines; log.jsonl has every step", ge=1)
    eval_every: int = field(500, "steps between evaluations", ge=1)
    eval_tokens: int = field(3_276_800, "tokens per evaluation, the same ones every time", ge=1)
    save_every: int = field(500, "steps between checkpoints", ge=1)
    keep_latest: int = field(2, "newest checkpoints to keep", ge=1)
    keep_best: int = field(1, "checkpoints with the lowest validation loss to keep", ge=0)
    keep_every: int | None = field(None, "also keep checkpoints at multiples of this step", ge=1)
    early_stop: bool = field(False, "stop at an evaluation where the diagnosis finds that more training will not help")
    on_nonfinite: Literal["abort", "skip", "rewind"] = field(
        "abort",
        "where the loss or gradient is not finite: abort the run; skip the update, at most 10 in a row; or rewind to "
        "the newest checkpoint and leave out the batch, at most 3 times to each checkpoint",
    )
    watchdog: float = field(
        60.0, "seconds after which a step is hung if it also takes 10 times the median: the run ends (0: off)", ge=0.0
    )
    profile: str = field("", "steps to trace with JAX's profiler, FIRST:END, such as 20:25 (empty: none)")
    trackers: tuple[Literal["auto", "tensorboard", "wandb", "trackio", "mlflow"], ...] = field(
        ("auto",),
        "what gets the metrics beside log.jsonl, separated by commas (auto: TensorBoard, if tensorboardX is installed)",
    )
    sample_prompt: str = field("", "prompt of a sample at each evaluation and at the end (empty: no sample)")
    sample_tokens: int = field(200, "tokens of that sample", ge=1)
    sample_temperature: float = field(0.8, "temperature of that sample (0: the most likely tokens)", ge=0.0)

    @property
    def profiled_steps(self) -> tuple[int, int]:
        """The steps before the first profiled one, and those after the last; -1 without any."""
        first, _, end = (self.profile or "-1:-1").partition(":")
        return int(first), int(end)

    def check(self) -> None:
        if self.profile and not re.fullmatch(r"\d{1,9}:\d{1,9}", self.profile):
            raise ConfigError("C009", f"run.profile = {self.profile!r}; must be FIRST:END", "--run.profile 20:25")
        if self.profile and self.profiled_steps[0] >= self.profiled_steps[1]:
            raise ConfigError("C009", f"run.profile = {self.profile!r} has no step", "--run.profile 20:25")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(
                "C019",
                f"run.name = {self.name!r} cannot name a folder",
                "use letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run. Sections check themselves; rules that span two sections are checked here."""

    model: Model = Model()
    data: Data = Data()
    optim: Optim = Optim()
    mesh: Mesh = Mesh()
    run: Run = Run()

    def __post_init__(self) -> None:
        for name, kind in sections().items():
            if not isinstance(getattr(self, name), kind):
                given = type(getattr(self, name)).__name__
                message = f"{name} is of the type {given}; a {kind.__name__}(...) is needed"
                raise ConfigError("C007", message, f"{name}={kind.__name__}(...)")
        if self.optim.warmup_steps > self.run.steps:
            raise ConfigError(
                "C014",
                f"optim.warmup_steps = {self.optim.warmup_steps} is longer than the run (run.steps = {self.run.steps})",
                f"--optim.warmup-steps {max(self.run.steps // 10, 1)}",
            )
        decay = self.optim.decay_steps
        if self.optim.schedule == "wsd" and decay is not None and decay + self.optim.warmup_steps > self.run.steps:
            raise ConfigError(
                "C014",
                f"optim.warmup_steps + decay_steps = {self.optim.warmup_steps + decay}; run.steps = {self.run.steps}",
                "shorten one of them",
            )
        if self.optim.schedule in ("cosine", "linear") and decay is not None and decay < self.optim.warmup_steps:
            raise ConfigError(
                "C014",
                f"optim.decay_steps = {decay} ends before optim.warmup_steps = {self.optim.warmup_steps}",
                "the decay ends at step optim.decay_steps, counted from the start of the run",
            )

    @property
    def tokens_per_step(self) -> int:
        return self.data.micro_batch * self.data.accum * self.model.block_size

    def replace(self, changes: dict[str, dict[str, Any]]) -> Self:
        """This config with `{"section": {"field": value}}` changed, and checked."""
        new = {name: dataclasses.replace(getattr(self, name), **changed) for name, changed in changes.items()}
        return dataclasses.replace(self, **new)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON values by section and field; `from_dict` is the inverse."""
        return {name: _json_values(getattr(self, name)) for name in sections()}

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> Self:
        """The config of a `to_dict`, also of an older version that had fewer fields or other names.

        Raises `ConfigError` C005 for a field that this version does not know.
        """
        changes: dict[str, dict[str, Any]] = {name: {} for name in sections()}
        for section, stored in values.items():
            if section not in changes:
                raise _unknown_field(section)
            for old_name, value in stored.items():
                label = RENAMED.get(f"{section}.{old_name}", f"{section}.{old_name}")
                name = label.split(".")[1]
                if old_name == "tensorboard":
                    value = ["auto"] if value else []
                if name not in field_types(sections()[section]):
                    raise _unknown_field(label)
                changes[section][name] = tuple(value) if isinstance(value, list) else value
        made: dict[str, Any] = {name: section(**changes[name]) for name, section in sections().items()}
        return cls(**made)


def sections() -> dict[str, type[Section]]:
    """The sections of `Config` in order."""
    return {field.name: field.type for field in dataclasses.fields(Config)}  # type: ignore[misc]


def _unknown_field(label: str) -> ConfigError:
    return ConfigError("C005", f"unknown field {label!r}", "another version of jaxgpt wrote it")


def _json_values(section: Section) -> dict[str, Any]:
    values = {name: getattr(section, name) for name in field_types(type(section))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
