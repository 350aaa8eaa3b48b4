"""Published runs beside which a plan is put: figures with their source. `bench/refit.py` fits the law to some of them.

Columns: corpus, parameters in millions (a tied matrix once, positions left out), tokens trained on and, if some were
repeated, different tokens, both in billions, final validation loss in nats per token, and what was trained how.
"""

import math
from dataclasses import dataclass

MODDED = "KellerJordan/modded-nanogpt, records/"
PORIAN = "Porian et al. 2024, formll/resolving-scaling-law-discrepancies, GPT-NeoX tokens"
GADRE = "Gadre et al. 2024, mlfoundations/scaling, GPT-NeoX tokens, learning rate not tuned per size"
DATABLATIONS = "Muennighoff et al. 2023, huggingface/datablations, GPT-2 tokens, one learning rate for all sizes"

TABLE = {
    MODDED + "track_1_short/2024-10-13_llmc": """
        fineweb      123.6   10.26  0.00 3.2722 llm.c's GPT-2, AdamW at 6e-4""",
    "llm.c discussion 481, quoted by modded-nanogpt": """
        fineweb      123.6   10.00  0.00 3.2900 llm.c's GPT-2, AdamW at 6e-4 ("about 3.29")""",
    "eliebak/modded-nanogpt, README": """
        fineweb      123.6   10.00  0.00 3.2847 llm.c's GPT-2, AdamW at 6e-4 (another evaluation)
        fineweb      123.6    5.00  0.00 3.2818 rotary positions, AdamW at 1.8e-3""",
    MODDED + "track_1_short/2024-10-10_Muon": """
        fineweb      123.6    3.25  0.00 3.2785 rotary positions, Muon""",
    MODDED + "track_1_short/2024-10-29_Optimizers": """
        fineweb      123.6    2.67  0.00 3.3406 modern block, Adam at 1.8e-3
        fineweb      123.6    2.67  0.00 3.2760 modern block, Muon
        fineweb      123.6    2.67  0.00 3.2752 modern block, SOAP
        fineweb      123.6    2.67  0.00 3.2858 modern block, Shampoo""",
    MODDED + "track_3_optimization": """
        fineweb      162.2    2.95  0.00 3.2800 modern block, untied head, Adam (5,625 steps to 3.28)
        fineweb      162.2    1.89  0.00 3.2776 modern block, untied head, Muon
        fineweb      162.2    2.56  0.00 3.2764 modern block, untied head, AdamH""",
    MODDED + "track_1_short/2024-10-20_ScaleUp1B": """
        fineweb     1549.5   10.00  0.00 2.7737 modern block, AdamW at 9e-4
        fineweb     1549.5   10.00  0.00 2.7297 modern block, Muon""",
    "karpathy/nanoGPT, README": """
        openwebtext  123.6  294.91  9.00 2.8500 nanoGPT's GPT-2, AdamW at 6e-4""",
    "feljost/fgpt, README": """
        fineweb-edu  600.0   45.00  0.00 2.5800 Llama-like, Muon (about)""",
    DATABLATIONS: """
        c4            82.7   20.00  0.00 3.6080 GPT-2, AdamW
        c4           146.5   14.00  0.00 3.3197 GPT-2, AdamW
        c4           146.5   14.00  1.50 3.3341 GPT-2, AdamW
        c4           220.5    7.50  1.50 3.3251 GPT-2, AdamW
        c4           281.0    5.90  1.50 3.3308 GPT-2, AdamW
        c4           421.2    3.90  0.00 3.3481 GPT-2, AdamW
        c4           421.2    3.90  1.50 3.3550 GPT-2, AdamW
        c4           421.2   32.00  0.00 2.9121 GPT-2, AdamW
        c4           618.7   22.00  0.00 2.9002 GPT-2, AdamW
        c4           618.7   22.00  4.80 2.9120 GPT-2, AdamW
        c4           618.7   22.00  1.50 2.9735 GPT-2, AdamW
        c4          2810.0   55.00  0.00 2.5741 GPT-2, AdamW
        c4          2810.0   55.00 14.00 2.5894 GPT-2, AdamW
        c4          2810.0   55.00  4.00 2.6964 GPT-2, AdamW""",
    GADRE: """
        c4            78.9    3.16  0.00 3.6430 Llama-like, AdamW
        c4           153.7    6.15  0.00 3.2951 Llama-like, AdamW
        c4           411.6   16.46  0.00 2.9433 Llama-like, AdamW
        refinedweb    78.9    3.16  0.00 3.9016 Llama-like, AdamW
        refinedweb   153.7    6.15  0.00 3.5532 Llama-like, AdamW
        refinedweb   411.6   65.86  0.00 3.0326 Llama-like, AdamW""",
    PORIAN: """
        openwebtext2  15.6    2.14  0.00 3.8197 Llama-like, AdamW, constant LR
        openwebtext2  37.1    7.20  0.00 3.4001 Llama-like, AdamW, constant LR
        openwebtext2  84.8   12.58  0.00 3.1214 Llama-like, AdamW, constant LR
        openwebtext2 149.0   28.63  0.00 2.9230 Llama-like, AdamW, constant LR
        openwebtext2 347.1   12.29  0.00 2.7942 Llama-like, AdamW, constant LR
        refinedweb    15.6    4.27  0.00 4.0748 Llama-like, AdamW, constant LR
        refinedweb    37.1    7.20  0.00 3.7113 Llama-like, AdamW, constant LR
        refinedweb    84.8   12.58  0.00 3.4423 Llama-like, AdamW, constant LR
        refinedweb   149.0   28.63  0.00 3.2552 Llama-like, AdamW, constant LR
        refinedweb   347.1   12.29  0.00 3.1242 Llama-like, AdamW, constant LR""",
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published run; `unique` is None where no token was repeated."""

    corpus: str
    parameters: float
    tokens: float
    unique: float | None
    loss: float
    what: str
    source: str


def _read() -> tuple[Reference, ...]:
    found = []
    for source, rows in TABLE.items():
        for row in rows.strip().splitlines():
            corpus, parameters, tokens, unique, loss, what = row.split(maxsplit=5)
            found.append(
                Reference(
                    corpus=corpus,
                    parameters=float(parameters) * 1e6,
                    tokens=float(tokens) * 1e9,
                    unique=float(unique) * 1e9 or None,
                    loss=float(loss),
                    what=what,
                    source=source,
                )
            )
    return tuple(found)


REFERENCES = _read()


def nearest(parameters: float, tokens: float, corpus: str, count: int = 3) -> list[Reference]:
    """The published runs nearest in size and tokens (both as logarithms); another corpus counts as a factor of e^2."""

    def far(run: Reference) -> float:
        sizes = math.hypot(math.log(run.parameters / parameters), math.log(run.tokens / tokens))
        return sizes + (0.0 if corpus in (run.corpus, "unknown") else 2.0)

    found: dict[tuple[str, float, str], Reference] = {}
    for run in sorted(REFERENCES, key=far):
        found.setdefault((run.corpus, run.parameters, run.what.split(" (")[0]), run)  # one recipe, told once
    return list(found.values())[:count]
