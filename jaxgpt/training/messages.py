"""What a run says before its first step and after its last one, as text."""

import math
import shlex

import jax

from jaxgpt.config import Config, Run
from jaxgpt.config.model_size import non_embedding_parameters, parameters
from jaxgpt.data.dataset import TokenDataset
from jaxgpt.data.entropy import unigram_entropy
from jaxgpt.diagnose.stopper import MARK
from jaxgpt.errors import FOR_A_GPU
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import jax_setup
from jaxgpt.training.metrics import Scores


def opening(config: Config, tokens: TokenDataset, devices: list[jax.Device], folder: RunFolder, first: int) -> str:
    """The run in a few lines; the first two are nanoGPT's."""
    windows = tokens.train.windows(config.model.block_size)
    sequences = config.data.micro_batch * config.data.accum * config.run.steps
    held = f", {tokens.val.tokens:,} held out" if tokens.val else ", none held out"
    kernel = f"{config.model.dtype}, attention by {config.model.attention}"
    lines = [
        f"tokens per iteration will be: {config.tokens_per_step:,}",
        f"number of parameters: {parameters(config.model) / 1e6:.2f}M",
        f"  of them outside embeddings and head: {non_embedding_parameters(config.model) / 1e6:.2f}M",
        f"data: {tokens.train.tokens:,} tokens in {tokens.folder}{held}; {sequences / windows:.2f} epochs",
        f"device: {len(devices)} x {devices[0].device_kind} ({kernel})",
        f"run: {folder.path}, " + (f"resumed at step {first:,}" if first else "new") + f", {config.run.steps:,} steps",
    ]
    if config.mesh.device == "auto" and devices[0].platform == "cpu" and jax_setup.gpu_driver():
        lines.append(f"note: there is an NVIDIA GPU here that JAX does not see: {FOR_A_GPU}")
    if sequences / windows > 4:
        lines.append("warning: more than 4 epochs are planned; repeated tokens teach less and less")
    return "\n".join([*lines, *(f"note: {note}" for note in tokens.notes)])


def unigram_line(tokens: TokenDataset) -> str:
    """The loss of a model that knows only how often each token occurs, which is where learning begins."""
    split = tokens.val or tokens.train
    entropy = unigram_entropy(split, tokens.vocab_size)
    bits = entropy / math.log(2) * split.tokens / split.bytes if split.bytes else None
    per_byte = "" if bits is None else f", {bits:.3f} bits per byte"
    return f"unigram entropy of the same text: {entropy:.4f} nats per token{per_byte}"


def closing(scores: Scores, tokens: TokenDataset, folder: RunFolder, step: int) -> str:
    """The result, and what to do with it."""
    which = "held-out text" if scores.val else "training text"
    path = shlex.quote(str(folder.path))
    return "\n".join(
        [
            f"done: {step:,} steps; loss on {which} {scores.main}",
            f"      {unigram_line(tokens)}",
            "next:",
            f"  python -m jaxgpt.sample {path} --prompt 'TEXT'",
            f"  python -m jaxgpt.evaluate {path} --step best",
            f"  python -m jaxgpt.train --config NAME --run.name longer --run.steps {2 * step} --fork {path}",
        ]
    )


def over(folder: RunFolder, run: Run, step: int) -> str:
    """What a second call of a run hears that has ended after `step` updates, well or early; "" if it goes on."""
    if step >= run.steps:
        return already_done(folder, step)
    ended = runlog.ending(folder.log_file) if run.early_stop and step else ""
    return stopped_early(step, run.steps, ended.removeprefix(MARK)) if ended.startswith(MARK) else ""


def stopped_early(step: int, steps: int, why: str) -> str:
    """Why a run ended before its last step, and how it goes on."""
    return (
        f"stopped early, saved after step {step:,} of {steps:,}: {why}\n"
        "  to go on all the same: the same command with --run.early-stop false"
    )


def already_done(folder: RunFolder, step: int) -> str:
    """What a second call of a finished run hears."""
    path = shlex.quote(str(folder.path))
    return (
        f"{folder.path} is done: it has all its {step:,} steps\n"
        f"  python -m jaxgpt.sample {path} --prompt 'TEXT'\n"
        f"  a new run: --run.name NEW; to train this one on: --run.name NEW --run.steps {2 * step} --fork {path}"
    )
