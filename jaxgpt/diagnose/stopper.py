"""Whether a run should end before its last step, by what its own diagnosis says of it (`run.early_stop`)."""

import numpy as np

from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Finding

GROUNDS = ("divergence", "severe-overfitting")
AGAIN = 2  # evaluations in a row that must say the same: one can be chance
MARK = "early-stop: "  # how the log's `stop` record begins
NEAR = 1e-3  # of the peak: a rate that has arrived at its last value


class Stopper:
    """Asked at each evaluation; remembers what it saw at the one before."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def ask(self, found: Diagnosis) -> str:
        """Why to stop, with the evidence, in one sentence; "" to go on."""
        ground, why = reason(found)
        self._seen = [*self._seen, ground] if ground in self._seen else [ground]
        return why if ground and len(self._seen) >= AGAIN else ""


def reason(found: Diagnosis) -> tuple[str, str]:
    """The ground on which this diagnosis says stop, and the sentence; two empty strings if it does not."""
    judged = {finding.id: finding for finding in found.findings}
    for name in GROUNDS:
        if name in judged and judged[name].status == "confirmed":
            return name, f"{name}: {evidence(judged[name])}"
    little = little_to_gain(found)
    return ("little-to-gain", little) if little else ("", "")


def evidence(finding: Finding) -> str:
    """What its conditions found, each thing once."""
    parts = [part for condition in finding.conditions for part in condition.evidence.split("; ")]
    return "; ".join(dict.fromkeys(parts))


def little_to_gain(found: Diagnosis) -> str:
    """The sentence, if the rest of the run is expected to gain less than an evaluation can see; "" otherwise.

    Only where the learning rate has fallen to its last value: before that, annealing is still to come.
    """
    done, rates = found.history.steps_done, found.context.lr_fractions
    error = next((e.standard_error for e in reversed(found.history.evaluations) if e.standard_error), None)
    if found.posterior is None or found.forecast is None or error is None or not 0 < done < len(rates):
        return ""
    if rates.max() - rates[-1] < NEAR or np.abs(rates[done:] - rates[-1]).max() > NEAR:
        return ""
    now = float(found.posterior.predict([done])[0][0])
    gain = now - found.forecast.mean
    if gain >= error:
        return ""
    left = len(rates) - done
    return (
        f"little to gain: the learning rate is at its last value, and the {left:,} steps that are left are expected to "
        f"gain {gain:.4f} nats, less than the {error:.4f} that an evaluation is uncertain by"
    )
