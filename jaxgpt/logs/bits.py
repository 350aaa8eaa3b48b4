"""Converts validation losses in bits per byte to nats per token.

With B bytes per token, a loss is bits × ln 2 × B nats per token. A user may state B, or the log. Else the ratio of the
training loss to the validation at the same step shows it: the levels of both then agree by construction, and only the
shape of the validation curve is evidence. A log without a training loss is converted with a B that is assumed.
"""

import math
import statistics

from jaxgpt.errors import DataError
from jaxgpt.logs.collector import Collector

BYTES_PER_TOKEN = (0.99, 16.0)  # plausible range


def bytes_per_token(nats: float | None, bits: float | None) -> float | None:
    """Bytes per token at which a loss in nats per token equals one in bits per byte; None if that is implausible."""
    if nats is None or not bits or not math.isfinite(nats) or not math.isfinite(bits):
        return None
    length = nats / (bits * math.log(2))
    return length if BYTES_PER_TOKEN[0] < length < BYTES_PER_TOKEN[1] else None


def convert_evaluations(log: Collector) -> None:
    """Converts the evaluations of `log` from bits per byte, if anything tells how long a token is.

    Raises `DataError` D042 if nothing does, and the log has no other losses.
    """
    log.flush()
    if not log.evaluations:
        return
    given = log.bytes_per_token
    stated = given.value if given is not None and not given.assumed_from else log.metadata.get("bytes_per_token")
    estimated = None if stated else _estimate_length(log)
    length = stated or estimated or (given and given.value)
    if length is None and not any(step.loss is not None for step in log.steps):
        message = f"the losses of {log.source} are in bits per byte alone, and the bytes per token are unknown"
        fix = "state them with --bytes-per-token, or add a column train_loss in nats per token"
        raise DataError("D042", message, fix)
    if length is None:
        log.note("validation is in bits per byte, and no training loss beside it tells nats per token")
        log.evaluations = []
        return
    nats = math.log(2) * length
    log.evaluations = [
        evaluation._replace(val=None if evaluation.val is None else evaluation.val * nats)
        for evaluation in log.evaluations
    ]
    log.metadata["bytes_per_token"] = length
    agrees = ", at which it agrees with the training loss, so that a gap between the two cannot be seen"
    log.note(
        f"validation is in bits per byte; it was converted to nats per token with {length:.3f} bytes per token"
        f"{agrees if estimated else ''}"
    )
    if not stated and not estimated and given is not None:
        log.metadata["assumption"] = f"a token is assumed to be {length:.2f} bytes: {given.assumed_from}"


def _estimate_length(log: Collector) -> float | None:
    """The median ratio of the training loss to the validation, over the later half of the evaluations."""
    losses = {step.step: step.loss for step in log.steps if step.loss is not None}
    lengths = [
        bytes_per_token(losses.get(evaluation.step, losses.get(evaluation.step - 1)), evaluation.val)
        for evaluation in log.evaluations[len(log.evaluations) // 2 :]
    ]
    plausible = [length for length in lengths if length is not None]
    return statistics.median(plausible) if plausible else None
