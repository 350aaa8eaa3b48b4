"""A run compared with the planner's scaling law: predicted losses, the cost of repeated text, gains of changes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from jaxgpt.budget import scaling_law
from jaxgpt.budget.scaling_law import LossPrediction, ScalingQuery
from jaxgpt.diagnose.analysis.series import Estimate
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.context.scaling_query import scaling_query
from jaxgpt.diagnose.context.tokens import GPT2_TOKENS

UNKNOWN_GAIN = (0.128, 0.06)  # nats that annealing gains under any schedule and weight decay, and their spread
AFTER_WARMUP = 0.15  # nats by which a healthy run is above the prediction where its warmup has just ended
MAX_EPOCHS = 660  # of the runs that the repetition law was fitted to (Muennighoff et al., 2023)
MAX_CORPUS_SD = 0.10  # nats: on a corpus whose offset is known less well, levels cannot be predicted


@dataclass(frozen=True)
class LawComparison:
    """What the scaling law predicts for a run: `annealed_val` is the latest loss after a decay of the learning rate."""

    context: RunContext
    steps_done: int
    total_steps: int
    annealed_val: Callable[[], Estimate | None]
    latest_val: Callable[[], Estimate | None]

    def query_at(self, steps: int) -> ScalingQuery | None:
        """The query for a run like this of `steps` steps; None where its size or batch is unknown."""
        return scaling_query(self.context, steps, self.total_steps)

    @cached_property
    def query(self) -> ScalingQuery | None:
        """The query for this run at its full length."""
        return self.query_at(self.total_steps)

    @cached_property
    def prediction(self) -> LossPrediction | None:
        """The predicted loss at the end of the run."""
        return None if self.query is None else scaling_law.predict_loss(self.query)

    @cached_property
    def prediction_now(self) -> LossPrediction | None:
        """The predicted loss of a run that ends, fully annealed, at the step that this run has reached."""
        query = self.query_at(self.steps_done)
        if query is None:
            return None
        return scaling_law.predict_loss(replace(query, recipe=replace(query.recipe, final_lr_fraction=0.0)))

    @cached_property
    def inapplicable_reason(self) -> str:
        """Why the scaling law does not apply to this run; empty where it does."""
        if self.context.config is not None and self.context.config.run.init_from:
            return "the scaling law holds for random weights, and this run starts from given ones"
        if self.prediction_now is None:
            return "the run's size or its tokens per step are unknown"
        if self.prediction_now.outside:
            return "outside the scaling law's fitted range: " + ", ".join(self.prediction_now.outside)
        if self.has_other_tokens:
            return "the scaling law holds for GPT-2's tokens, not for those of this run"
        corpus = self.context.corpus
        if corpus.sd > MAX_CORPUS_SD:
            option = " (--corpus)" if corpus.name == "unknown" else ""
            return f"the loss level of the corpus ({corpus.name}) is not known to {MAX_CORPUS_SD:g} nats{option}"
        return ""

    @property
    def missing_for_residual(self) -> str:
        """What a comparison of the run's loss with the predicted one needs."""
        if self.prediction_now is None:
            return self.missing_for_query
        if not self.inapplicable_reason:
            return "a validation loss after the warmup"
        return f"{self.inapplicable_reason}: a baseline run to compare with (--baseline RUN)"

    @property
    def missing_for_query(self) -> str:
        """The facts that a prediction needs and that are unknown."""
        return self.context.missing("parameters", "tokens_per_step") or "a first step"

    @property
    def outside_repetition(self) -> str:
        """Why the repetition law does not cover the whole run; empty where it does, or where nothing is known of it."""
        epochs = self.context.epochs(self.total_steps)
        if epochs is None or epochs <= MAX_EPOCHS:
            return ""
        return f"{epochs:,.0f} epochs are outside the repetition law, whose runs have at most {MAX_EPOCHS}"

    @cached_property
    def out_of_range_reason(self) -> str:
        """Why the complete run is outside the fitted range; empty inside. Differences need no corpus offset."""
        if self.prediction is None:
            return "the run's size or its tokens per step are unknown"
        if self.prediction.outside:
            return "outside the scaling law's fitted range: " + ", ".join(self.prediction.outside)
        return self.outside_repetition

    @property
    def is_out_of_range(self) -> bool:
        return bool(self.out_of_range_reason)

    @property
    def has_other_tokens(self) -> bool:
        """Whether the tokenizer is known not to be GPT-2's."""
        return self.context.token_scale is not GPT2_TOKENS

    @cached_property
    def residual(self) -> Estimate | None:
        """The loss after annealing minus the predicted loss; None outside its range, or in the warmup."""
        annealed = self.annealed_val()
        if self.inapplicable_reason or annealed is None or self.prediction_now is None:
            return None
        if self.steps_done <= self.context.optim.warmup_steps:
            return None
        stderr = math.hypot(self.prediction_now.sigma, annealed.stderr)
        return Estimate(annealed.value - self.prediction_now.loss, stderr, annealed.lines)

    @cached_property
    def excess(self) -> Estimate | None:
        """The last validation loss minus the predicted one, with the uncertainty of what `residual` needs to know.

        Outside the fitted range the prediction is less certain, and without a known schedule the annealing gain is.
        None before the end of the warmup, for another tokenizer than GPT-2's, and where size or batch are unknown.
        """
        latest = self.latest_val()
        warmup = self.context.optim.warmup_steps
        if self.prediction_now is None or latest is None or self.has_other_tokens or self.steps_done <= warmup:
            return None
        gain, gain_sd = UNKNOWN_GAIN
        early = AFTER_WARMUP * warmup / self.steps_done
        stderr = math.hypot(self.prediction_now.sigma, latest.stderr, gain_sd, early)
        return Estimate(latest.value - gain - self.prediction_now.loss, stderr, latest.lines)

    def gain(self, **changes: float) -> float | None:
        """How much lower the run would end with `changes` to its query and a tuned recipe, in nats."""
        if self.query is None:
            return None
        changed = scaling_law.predict_loss(replace(self.query, **changes))  # type: ignore[arg-type]
        current = scaling_law.predict_loss(self.query)
        return (current.loss - current.terms["recipe"]) - (changed.loss - changed.terms["recipe"])

    def gain_of_doubling(self, field: str) -> float | None:
        """The gain of doubling `parameters`, `tokens` or `unique` of the query, in nats; None where it is unknown."""
        value = getattr(self.query, field, None)
        return None if value is None else self.gain(**{field: 2 * value})

    def repetition_cost(self, steps: float, unique: float | None = None) -> float | None:
        """The loss that repeated tokens cost after `steps` steps by the repetition law, in nats; None where unknown.

        `unique` replaces the run's number of unique tokens.
        """
        context = self.context
        unique = context.unique_tokens if unique is None else unique
        if not context.parameters or not context.tokens_per_step or not unique:
            return None
        return scaling_law.repetition_cost(context.parameters, steps * context.tokens_per_step, unique)
