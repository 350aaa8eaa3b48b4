"""The standard error of one evaluation on random text, as far as the log or the number of its tokens tells it."""

import math

import numpy as np

from jaxgpt.budget.tokens import GPT2_VOCAB_SIZE
from jaxgpt.diagnose.context.run_context import RunContext
from jaxgpt.logs.history import History
from jaxgpt.utils.stats import is_valid

# The measured standard error of an evaluation on random windows of 1,024 tokens of GPT-2, in nats, and its tokens.
RANDOM_TEXT_STDERR, RANDOM_TEXT_TOKENS = 0.044, 524_288


def stated_noise(history: History, context: RunContext) -> float | None:
    """The logged standard error in nats, else that of the run's number of tokens.

    None where neither is known, and on a fixed text, whose choice moves all evaluations alike.
    """
    if context.fixed_eval_set:
        return None
    logged = [e.standard_error for e in history.evaluations if e.standard_error and is_valid(e.standard_error)]
    if logged:
        return float(np.median(logged))
    return random_text_noise(context.eval_tokens, context.vocab_size) if context.eval_tokens else None


def random_text_noise(tokens: float, vocab_size: int | None) -> float:
    """The standard error in nats of an evaluation on `tokens` random tokens; a smaller vocabulary has a smaller one."""
    scale = math.log(vocab_size or GPT2_VOCAB_SIZE) / math.log(GPT2_VOCAB_SIZE)
    return scale * RANDOM_TEXT_STDERR * math.sqrt(RANDOM_TEXT_TOKENS / tokens)
