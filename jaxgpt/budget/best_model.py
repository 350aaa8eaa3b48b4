"""The trainable model that ends with the lowest predicted loss for as many FLOPs as a run takes."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxgpt.budget import query, scaling_law, search
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import FITTED_PARAMETERS, FITTED_RATIO, Corpus, LossPrediction
from jaxgpt.config import Config
from jaxgpt.config.model_size import parameters
from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BestModel:
    """The best model for the same 6 N D among the shapes of fitted sizes that fit on the device, and its run.

    `at_ratio_limit` tells that the fit's minimum of tokens per parameter stopped the search.
    """

    config: Config
    parameters: float
    tokens: float
    prediction: LossPrediction
    at_ratio_limit: bool

    @property
    def steps_in_words(self) -> str:
        """The length of its run, to two digits: `5,100 steps`."""
        return f"{float(f'{self.config.run.steps:.2g}'):,.0f} steps"


def best_model(
    config: Config, product: float, corpus: Corpus, unique: float | None, device: Device | None, gpus: int = 1
) -> BestModel | None:
    """The best model with that product of parameters and tokens; None if no fitted size can train with it.

    The rest of its config is that of `config`. Without a device every shape is assumed to fit.
    """
    fitting = [_same_compute(shaped, product, unique) for shaped in _fitting_shapes(config, device, gpus)]
    allowed = [run for run in fitting if _is_fitted(run)]
    if not allowed:
        return None

    def predict(run: Config) -> LossPrediction:
        return scaling_law.predict_loss(query.build_query(run, run.run.steps, corpus, unique))

    best = min(allowed, key=lambda run: predict(run).loss)
    return BestModel(
        config=best,
        parameters=parameters(best.model),
        tokens=float(best.run.steps) * best.tokens_per_step,
        prediction=predict(best),
        at_ratio_limit=best is allowed[-1] and best is not fitting[-1],
    )


def _fitting_shapes(config: Config, device: Device | None, gpus: int) -> Iterator[Config]:
    """`config` with each shape of the ladder whose step fits on the device."""
    for shape in search.SHAPES:
        try:
            shaped = search.with_shape(config, *shape)
        except ConfigError:  # the config's other fields do not allow it
            continue
        batched = shaped if device is None else search.with_batch(shaped, device, gpus)
        if batched is not None:
            yield batched


def _same_compute(config: Config, product: float, unique: float | None) -> Config:
    """`config` with as many steps as parameters times tokens allow."""
    steps = int(product / parameters(config.model) / config.tokens_per_step)
    return search.with_steps(config, max(1, steps), unique)


def _is_fitted(config: Config) -> bool:
    size = parameters(config.model)
    is_long_enough = config.run.steps >= search.MIN_STEPS
    enough_tokens = config.run.steps * config.tokens_per_step >= FITTED_RATIO * size
    return is_long_enough and enough_tokens and FITTED_PARAMETERS[0] <= size <= FITTED_PARAMETERS[1]
