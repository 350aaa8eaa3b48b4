"""A run's model as a model of EleutherAI's lm-evaluation-harness (the extra `eval`).

Every request is scored in windows of one shape [B, T + 1], so that one program is compiled. Contexts that are longer
than the model's block lose their beginning, as with the harness's own models.

    B windows at a time   T block   W = T + 1
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxgpt.errors import ConfigError, did_you_mean
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.generation.sampler import stream_text
from jaxgpt.training.loaded_model import LoadedModel

MAX_NEW_TOKENS = 256  # of an answer, where a task does not say
GREEDY = SamplingOptions(temperature=0.0)


class Score(NamedTuple):
    """The log-likelihood of a continuation in nats, and whether each of its tokens is the most likely one."""

    logprob: float
    is_greedy: bool


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """`model` with the methods that the harness calls; `rows` windows at a time."""

    backend = "causal"

    def __init__(self, model: LoadedModel, rows: int) -> None:
        super().__init__()
        self._model = model
        self._rows = rows
        self.max_length = model.config.model.block_size

    @property
    def eot_token_id(self) -> int:
        eot = self._model.tokenizer.eot
        return 0 if eot is None else eot

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        del add_special_tokens
        return self._model.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """The scores of requests (texts, context ids, continuation ids)."""
        scores = self._score([(context, continuation) for _, context, continuation in requests])
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, after an end-of-text token, in disjoint windows."""
        del disable_tqdm
        texts = [list(self._windows(request.args[0])) for request in requests]
        scores = iter(self._score(list(chain.from_iterable(texts))))
        return [sum(next(scores).logprob for _ in windows) for windows in texts]

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.eot_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return map(make_disjoint_window, windows)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The most likely continuation of each text, ended before the first of its `until` texts."""
        del disable_tqdm
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        count = min(options.get("max_gen_toks", MAX_NEW_TOKENS), max(self.max_length // 2, 1))
        ids = self.tok_encode(context)[-max(self.max_length - count, 1) :]
        text = ""
        for piece in stream_text(self._model, self._model.tokenizer.decode(ids), count=count, sampling=GREEDY):
            text += piece
            if any(stop in text for stop in stops):
                break
        return min((text.split(stop)[0] for stop in stops if stop), key=len, default=text)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        """The scores of pairs (context ids, continuation ids)."""
        scores: list[Score] = []
        for first in range(0, len(pairs), self._rows):
            batch = pairs[first : first + self._rows]
            windows_BxW = np.zeros((self._rows, self.max_length + 1), np.int32)
            spans = []
            for row, (context, continuation) in zip(windows_BxW, batch):
                ids = (context + continuation)[-len(row) :]
                row[: len(ids)] = ids
                spans.append(slice(max(len(ids) - len(continuation), 1) - 1, len(ids) - 1))
            logprobs_BxT, greedy_BxT = jax.device_get(_score_windows(self._settings, self._model.params, windows_BxW))
            for logprobs_T, greedy_T, span in zip(logprobs_BxT, greedy_BxT, spans):
                scores.append(Score(float(logprobs_T[span].sum()), bool(greedy_T[span].all())))
        return scores

    @property
    def _settings(self) -> "ScoreSettings":
        return ScoreSettings(self._model.graphdef, self._model.tokenizer.vocab_size)


class ScoreSettings(NamedTuple):
    """What the compiled program depends on: the network, and the ids that the tokenizer has."""

    graphdef: Any
    vocab_size: int


@partial(jax.jit, static_argnums=0)
def _score_windows(settings: ScoreSettings, params: Any, windows_BxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each window's next tokens [B, T], and whether they are the most likely ones."""
    gpt = nnx.merge(settings.graphdef, params)

    def score(window_W: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_TxV = gpt(window_W[None, :-1])[0, :, : settings.vocab_size]
        targets_T = window_W[1:]
        logprobs_TxV = jax.nn.log_softmax(logits_TxV, axis=-1)
        return jnp.take_along_axis(logprobs_TxV, targets_T[:, None], axis=1)[:, 0], logits_TxV.argmax(-1) == targets_T

    scores: tuple[jax.Array, jax.Array] = jax.lax.map(score, windows_BxW)
    return scores


def run_tasks(
    model: LoadedModel, tasks: Sequence[str], limit: int | None = None, task_dir: str | None = None
) -> dict[str, dict[str, Any]]:
    """The results of the harness's `tasks` by name, on at most `limit` documents each.

    `task_dir` has further tasks. Raises `ConfigError` C084 if there is no such task.
    """
    manager = TaskManager(include_path=task_dir)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        hint = f"{did_you_mean(unknown[0], manager.all_tasks)}lm-eval ls tasks lists them"
        raise ConfigError("C084", f"lm-evaluation-harness has no task {unknown[0]!r}", hint)
    rows = model.config.data.micro_batch
    evaluated = simple_evaluate(
        model=HarnessModel(model, rows), tasks=list(tasks), task_manager=manager, limit=limit, verbosity="ERROR"
    )
    results: dict[str, dict[str, Any]] = evaluated["results"]
    return results
