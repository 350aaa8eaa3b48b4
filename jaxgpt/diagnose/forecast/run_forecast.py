"""The forecast of a run's final validation loss, or the reason why there is none."""

from typing import NamedTuple

from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.forecast import annealing, prior
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.logs.history import History

TOO_FEW = (
    "{count} validation losses past the warmup; {needed} are needed, or the run's size, batch and corpus (--config, or "
    "--params, --batch-tokens and --corpus) for a forecast without any"
)


class RunForecast(NamedTuple):
    """The fitted loss model and the final loss that it predicts; both None where `unavailable` says why."""

    posterior: Posterior | None
    final_loss: Forecast | None
    unavailable: str


def forecast_run(history: History, context: RunContext) -> RunForecast:
    """Fits the loss model to the run's validation losses and forecasts its final loss."""
    if not context.total_steps:
        return RunForecast(None, None, "it is not known how long the run is to be (--total-steps)")
    if _loss_is_not_finite(history):
        return RunForecast(None, None, "its loss is not finite")
    if not context.lr_fractions.any():
        return RunForecast(None, None, "its learning rate is 0 throughout, or not known")
    curve = prior.loss_curve(history, context)
    try:
        posterior = annealing.fit(curve, prior.scaling_law_prior(context))
    except ValueError:
        count = int(curve.usable().sum())
        return RunForecast(None, None, TOO_FEW.format(count=count, needed=annealing.MIN_EVALUATIONS))
    return RunForecast(posterior, posterior.final_loss(), "")


def _loss_is_not_finite(history: History) -> bool:
    """Whether the last training or validation loss is NaN, infinite or too large to train on from."""
    training = [step.loss for step in history.steps if step.loss is not None]
    validation = [evaluation.val for evaluation in history.evaluations if evaluation.val is not None]
    return any(not abs(losses[-1]) < prior.MAX_LOSS for losses in (training, validation) if losses)
