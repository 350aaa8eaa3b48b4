"""The text that a run prints before its first step and after its last one."""

import math
import shlex

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.config.command_line import changed_options
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import non_embedding_parameters, parameters
from jaxgpt.data.dataset import TokenDataset
from jaxgpt.data.entropy import unigram_entropy
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import GPU_HELP
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import StopReason
from jaxgpt.training import jax_setup
from jaxgpt.training.records import BestEvaluation, Scores

SHOWN_WINDOWS = 3  # of the first batch
SHOWN_CHARACTERS = 200  # of each of these windows
MANY_EPOCHS = 4  # beyond which repeated tokens are worth clearly less than new ones


def startup_banner(config: Config, dataset: TokenDataset, mesh: Mesh, folder: RunFolder, origin: str) -> str:
    """The run in a few lines; the first two are nanoGPT's. `origin` is what it starts from."""
    devices = list(mesh.devices.flat)
    windows = dataset.train.windows(config.model.block_size)
    epochs = config.data.micro_batch * config.data.accum * config.run.steps / windows
    validation = f"{dataset.val.tokens:,} for validation" if dataset.val else "no validation split"
    kernels = f"{config.model.dtype}, attention by {config.model.attention}"
    lines = [
        f"tokens per iteration will be: {config.tokens_per_step:,}",
        f"number of parameters: {parameters(config.model) / 1e6:.2f}M",
        f"  of them outside embeddings and head: {non_embedding_parameters(config.model) / 1e6:.2f}M",
        f"data: {dataset.train.tokens:,} tokens in {dataset.folder}, {validation}; {epochs:.2f} epochs",
        f"device: {len(devices)} x {devices[0].device_kind} ({kernels})",
        f"run: {folder.path}, {origin}, {config.run.steps:,} steps",
    ]
    if config.mesh.device == "auto" and devices[0].platform == "cpu" and jax_setup.has_gpu_driver():
        lines.append(f"note: there is an NVIDIA GPU here that JAX does not see: {GPU_HELP}")
    if epochs > MANY_EPOCHS:
        lines.append(f"warning: more than {MANY_EPOCHS} epochs are planned; repeated tokens have diminishing returns")
    lines += [f"note: {note}" for note in dataset.notes]
    return "\n".join(lines)


def first_batch(block: jax.Array, tokenizer: Tokenizer) -> str:
    """The start of the first windows of a block [accum, micro_batch, window], as text."""
    windows = np.asarray(block).reshape(-1, block.shape[-1])
    lines = [f"first batch: {len(windows):,} windows of {windows.shape[1]:,} tokens; they begin with"]
    for window in windows[:SHOWN_WINDOWS]:
        text = tokenizer.decode([int(token) for token in window])
        lines.append(f"  {text[:SHOWN_CHARACTERS]!r}")
    return "\n".join(lines)


def result(scores: Scores, best: BestEvaluation, dataset: TokenDataset, step: int, stop: StopReason) -> str:
    """The losses of a run that ended after `step` steps: of a run that stopped early, the best one first."""
    text = "validation text" if scores.val else "training text"
    if stop.is_early:
        lines = [
            f"best loss on {text}: {best.loss:.4f} at step {best.step:,}",
            f"      the last: {scores.main} at step {step:,}",
        ]
    else:
        lines = [f"done: {step:,} steps; loss on {text} {scores.main}"]
    if not stop.is_early and best.step != step:
        lines.append(f"      the best, {best.loss:.4f}, was at step {best.step:,}")
    return "\n".join([*lines, f"      {unigram_baseline(dataset)}"])


def next_commands(folder: RunFolder, checkpoint: str, longer: str) -> str:
    """Commands that use the run's model; `longer`, which may be empty, is one that trains it further."""
    path = shlex.quote(str(folder.path))
    commands = [
        f"python -m jaxgpt.sample {path} --step {checkpoint} --prompt 'TEXT'",
        f"python -m jaxgpt.evaluate {path} --step best",
        longer,
    ]
    lines = [f"  {command}" for command in commands if command]
    return "\n".join(["next:", *lines, f"  charts, forecast and findings: {folder.report_file}"])


def longer_command(config: Config, config_name: str, folder: RunFolder, step: int) -> str:
    """The command that trains a finished run as long again, with its config and options; empty without a name."""
    if not config_name:
        return ""
    longer = config.replace({"run": {"name": f"{config.run.name}-longer", "steps": 2 * step}})
    options = changed_options(longer, load_config(config_name))
    return shlex.join(["python", "-m", "jaxgpt.train", "--config", config_name, *options, "--fork", str(folder.path)])


def unigram_baseline(dataset: TokenDataset) -> str:
    """The loss of a model that predicts each token by its frequency alone: where learning starts."""
    split = dataset.val or dataset.train
    entropy = unigram_entropy(split, dataset.vocab_size)
    bits = f", {entropy / math.log(2) * split.tokens / split.bytes:.3f} bits per byte" if split.bytes else ""
    return f"unigram entropy of the same text: {entropy:.4f} nats per token{bits}"


def already_stopped(reason: StopReason, config: Config, config_name: str, folder: RunFolder, step: int) -> str:
    """The answer to a command that repeats a run which has ended after `step` steps."""
    if reason.is_early:
        stopped = stopped_early(step, config.run.steps, reason.detail)
        commands = next_commands(folder, "best", "")
        return f"{stopped}\n{commands}\n  to continue anyway: the same command with --run.early-stop false"
    longer = longer_command(config, config_name, folder, step)
    return f"{folder.path} is done: it has all its {step:,} steps\n{next_commands(folder, 'latest', longer)}"


def stopped_early(step: int, total_steps: int, reason: str) -> str:
    """Why a run ended before its last step."""
    return f"stopped early, saved after step {step:,} of {total_steps:,}: {reason}"


def stopped_by_signal(step: int, folder: RunFolder) -> str:
    """What a run that a signal stopped has left, and how to continue."""
    return f"stopped after step {step:,}, saved; the same command resumes there\nreport: {folder.report_file}"
