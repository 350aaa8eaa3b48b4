"""The text that a run prints before its first step and after its last one."""

import math
import shlex

from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.config.model_size import non_embedding_parameters, parameters
from jaxgpt.data.dataset import TokenDataset
from jaxgpt.data.entropy import unigram_entropy
from jaxgpt.errors import GPU_HELP
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import StopReason
from jaxgpt.training import jax_setup
from jaxgpt.training.records import Scores

MANY_EPOCHS = 4  # beyond which repeated tokens are worth clearly less than new ones


def startup_banner(config: Config, dataset: TokenDataset, mesh: Mesh, folder: RunFolder, start_step: int) -> str:
    """The run in a few lines; the first two are nanoGPT's."""
    devices = list(mesh.devices.flat)
    windows = dataset.train.windows(config.model.block_size)
    epochs = config.data.micro_batch * config.data.accum * config.run.steps / windows
    validation = f"{dataset.val.tokens:,} for validation" if dataset.val else "no validation split"
    kernels = f"{config.model.dtype}, attention by {config.model.attention}"
    start = f"resumed at step {start_step:,}" if start_step else "new"
    lines = [
        f"tokens per iteration will be: {config.tokens_per_step:,}",
        f"number of parameters: {parameters(config.model) / 1e6:.2f}M",
        f"  of them outside embeddings and head: {non_embedding_parameters(config.model) / 1e6:.2f}M",
        f"data: {dataset.train.tokens:,} tokens in {dataset.folder}, {validation}; {epochs:.2f} epochs",
        f"device: {len(devices)} x {devices[0].device_kind} ({kernels})",
        f"run: {folder.path}, {start}, {config.run.steps:,} steps",
    ]
    if config.mesh.device == "auto" and devices[0].platform == "cpu" and jax_setup.has_gpu_driver():
        lines.append(f"note: there is an NVIDIA GPU here that JAX does not see: {GPU_HELP}")
    if epochs > MANY_EPOCHS:
        lines.append(f"warning: more than {MANY_EPOCHS} epochs are planned; repeated tokens have diminishing returns")
    lines += [f"note: {note}" for note in dataset.notes]
    return "\n".join(lines)


def summary(scores: Scores, dataset: TokenDataset, folder: RunFolder, step: int) -> str:
    """The result of a run after `step` steps, and commands to use it."""
    text = "validation text" if scores.val else "training text"
    path = shlex.quote(str(folder.path))
    return "\n".join(
        [
            f"done: {step:,} steps; loss on {text} {scores.main}",
            f"      {unigram_baseline(dataset)}",
            "next:",
            f"  python -m jaxgpt.sample {path} --prompt 'TEXT'",
            f"  python -m jaxgpt.evaluate {path} --step best",
            f"  python -m jaxgpt.train --config NAME --run.name longer --run.steps {2 * step} --fork {path}",
        ]
    )


def unigram_baseline(dataset: TokenDataset) -> str:
    """The loss of a model that predicts each token by its frequency alone: where learning starts."""
    split = dataset.val or dataset.train
    entropy = unigram_entropy(split, dataset.vocab_size)
    bits = f", {entropy / math.log(2) * split.tokens / split.bytes:.3f} bits per byte" if split.bytes else ""
    return f"unigram entropy of the same text: {entropy:.4f} nats per token{bits}"


def already_stopped(reason: StopReason, folder: RunFolder, step: int, total_steps: int) -> str:
    """The answer to a command that repeats a run which has ended after `step` steps."""
    if reason.is_early:
        return stopped_early(step, total_steps, reason.detail)
    path = shlex.quote(str(folder.path))
    return (
        f"{folder.path} is done: it has all its {step:,} steps\n"
        f"  python -m jaxgpt.sample {path} --prompt 'TEXT'\n"
        f"  a new run: --run.name NEW; to train this one further: --run.name NEW --run.steps {2 * step} --fork {path}"
    )


def stopped_early(step: int, total_steps: int, evidence: str) -> str:
    """Why a run ended before its last step, and how to continue it."""
    return (
        f"stopped early, saved after step {step:,} of {total_steps:,}: {evidence}\n"
        "  to continue anyway: the same command with --run.early-stop false"
    )


def stopped_by_signal(step: int) -> str:
    return f"stopped after step {step:,}, saved; the same command resumes there"
