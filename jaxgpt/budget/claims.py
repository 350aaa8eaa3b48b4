"""Claims that were made about the reference run before it ran, beside the law and the roofline."""

from dataclasses import dataclass

from jaxgpt.budget import plan, query
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan
from jaxgpt.budget.recommend import needed
from jaxgpt.budget.scaling_law import predict_loss
from jaxgpt.budget.step_time import Range
from jaxgpt.config.model_size import flops_per_token, parameters

LOSSES = {6_000: Range(2.9, 3.1), 10_000: Range(2.65, 2.80), 15_000: Range(2.50, 2.65), 20_000: Range(2.42, 2.55)}
GPT2_ON_FINEWEB = 3.425  # OpenAI's 124M weights on FineWeb's validation shard (llm.c, dev/vislog.ipynb)
OWNERS_PACE = 3.995  # seconds per step that the run's owner measured under nanoGPT on an RTX 4070
CLAIMED_HOURS, CLAIMED_PACE, CLAIMED_GB = Range(15, 20), Range(0.15, 0.20), Range(10, 11)
CLAIMED_STEPS = 20_000
CLAIMED_FLOPS, CLAIMED_TOKENS, CLAIMED_AT_TOKENS = 2.55e15, 15e9, Range(3.0, 3.2)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What was claimed, what the law or the roofline says, and what follows."""

    claim: str
    here: str
    verdict: str


def compare(found: Plan) -> list[Claim]:
    """The claims, judged for the plan's own model, device and corpus."""
    return [*_losses(found), _gpt2(found), _flops(found), *_times(found), _memory(found), _more_data(found)]


def _losses(found: Plan) -> list[Claim]:
    claims = []
    for iters, claimed in LOSSES.items():
        expected = plan.predict_loss(found.inputs, iters)
        off = expected.loss - claimed.best
        verdict = f"{off:.2f} too low" if expected.low > claimed.best else "possible"
        claims.append(
            Claim(
                claim=f"{iters:,} iterations end at {claimed.worst:.2f}–{claimed.best:.2f}",
                here=f"{expected.loss:.2f} ({expected.low:.2f}–{expected.high:.2f})",
                verdict=f"{verdict}: it {needed(found, claimed.best)}" if expected.low > claimed.best else verdict,
            )
        )
    return claims


def _gpt2(found: Plan) -> Claim:
    loss = plan.predict_loss(found.inputs, CLAIMED_STEPS).loss
    short = loss - GPT2_ON_FINEWEB
    what = f"{short:.2f} short" if short > 0 else "reached, by the middle of the interval"
    here = f"{loss:.2f} against its {GPT2_ON_FINEWEB:.3f} on FineWeb"
    return Claim(claim="it beats GPT-2 124M", here=here, verdict=what)


def _flops(found: Plan) -> Claim:
    config = found.inputs.config
    tokens = CLAIMED_STEPS * config.tokens_per_step
    six = 6.0 * parameters(config.model) * tokens
    whole = flops_per_token(config.model) * float(tokens)
    return Claim(
        claim="the run is 2,550 PFLOP = 2.55 × 10¹⁵ FLOPs",
        here=f"{six:.3g} (6ND), {whole:.3g} with attention",
        verdict=f"a PFLOP is 10¹⁵, so 2,550 of them are 2.55 × 10¹⁸; the claim is {six / CLAIMED_FLOPS:,.0f} times off",
    )


def _times(found: Plan) -> list[Claim]:
    device = found.inputs.device
    hours = OWNERS_PACE * CLAIMED_STEPS / 3600
    nano = found.paces.get("nanogpt")
    within = "" if nano is None else f"; roofline of nanoGPT-class software {nano.low:.1f}–{nano.high:.1f} s per step"
    inside = CLAIMED_HOURS.worst <= hours <= CLAIMED_HOURS.best
    claims = [
        Claim(
            claim="20,000 iterations take 15–20 hours",
            here=f"{hours:.1f} h at the owner's own {OWNERS_PACE} s{within}",
            verdict="possible" if inside else f"{hours / CLAIMED_HOURS.best - 1:+.0%} beyond the longest claimed",
        )
    ]
    if device is None:
        return claims
    needs = [6e-12 * parameters(found.inputs.config.model) * found.facts.tokens_per_step / s for s in CLAIMED_PACE]
    low, high = min(needs), max(needs)
    claims.append(
        Claim(
            claim="0.15–0.2 s per iteration are possible",
            here=f"needs {low:,.0f}–{high:,.0f} TFLOP/s; {device.name} has {device.tflops:g}",
            verdict=f"{low / device.tflops:.0f} times the card's peak"
            if low > device.tflops
            else "below the card's peak",
        )
    )
    return claims


def _memory(found: Plan) -> Claim:
    held = found.fit.need.total / GIB
    batch = found.inputs.config.data.micro_batch
    return Claim(
        claim="it needs 10–11 GB",
        here=f"{held:.1f} GiB at micro-batch {batch} in jaxgpt",
        verdict="software that holds all logits at once needs more: 16 × 1,024 × 50,304 are 3.1 GiB in float32, and "
        "their gradient as much",
    )


def _more_data(found: Plan) -> Claim:
    inputs = found.inputs
    iters = max(1, round(CLAIMED_TOKENS / inputs.config.tokens_per_step))
    asked = query.build_query(inputs.config, iters, inputs.corpus, CLAIMED_TOKENS)
    expected = predict_loss(asked)
    off = expected.loss - CLAIMED_AT_TOKENS.best
    return Claim(
        claim="15B tokens bring 3.0–3.2",
        here=f"{expected.loss:.2f} ({expected.low:.2f}–{expected.high:.2f}) after 15B different tokens",
        verdict=f"{off:.2f} too low: it {needed(found, CLAIMED_AT_TOKENS.best)}" if off > 0 else "possible",
    )
