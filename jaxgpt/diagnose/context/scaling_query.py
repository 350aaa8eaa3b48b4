"""What the planner's scaling law is asked about a run."""

import math
from dataclasses import replace

from jaxgpt.budget import recipes
from jaxgpt.budget.query import make_recipe
from jaxgpt.budget.scaling_law import ScalingQuery
from jaxgpt.diagnose.context.run_context import RunContext


def scaling_query(context: RunContext, steps: int, total_steps: int) -> ScalingQuery | None:
    """The query for the first `steps` steps of a run of `total_steps`; None where its size or batch is unknown.

    Its losses are per token of GPT-2. An unknown optimizer counts as AdamW.
    """
    if not context.parameters or not context.tokens_per_step or steps < 1:
        return None
    batch, size = context.tokens_per_step, context.parameters
    optim = context.optim
    if context.optimizer not in (None, "adamw"):  # its learning rate is not comparable with AdamW's
        tuned = recipes.tuned_learning_rate(size)
        optim = replace(optim, learning_rate=tuned, min_lr=tuned * optim.min_lr / (optim.learning_rate or 1.0))
    recipe = make_recipe(optim, total_steps, size, batch, context.dropout or 0.0)
    rows = context.vocab_size
    return ScalingQuery(
        parameters=size,
        tokens=batch * steps,
        recipe=replace(recipe, optimizer=context.optimizer or "adamw"),
        corpus=context.corpus,
        unique=context.unique_tokens or None,
        ceiling=math.log(rows) / context.token_scale.value if rows and rows > 1 else math.inf,
    )
