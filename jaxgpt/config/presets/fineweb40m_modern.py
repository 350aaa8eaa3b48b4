"""The reference run's size and data with a better recipe: Qwen3's block, Muon, and a linear decay to zero.

    python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb40m --val-tokens 10e6
    python -m jaxgpt.train --config fineweb40m_modern

Device: one GPU with 12 GB or more. `python -m jaxgpt.budget --config fineweb40m_modern` estimates its time on yours.
Loss: not measured at this size. In small models this recipe reaches the final loss of nanoGPT's recipe in a quarter of
its steps (docs/recipe.md has the evidence for each part); larger ones gain less, so try --run.steps 9000 first.

40.56M parameters (within 1 % of fineweb40m), head dimension 64 (6 heads), no dropout: under three epochs over billions
of tokens a model of this size cannot memorize much. The peak learning rate lies between Muon's best of small models
(docs/recipe.md) and that of 124M in modded-nanogpt's records. Everything else is fineweb40m's, such as its about 3.68B
unique tokens.
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(
        architecture="modern",
        n_layer=12,
        n_head=6,
        n_embd=384,
        n_inner=1024,
        block_size=1024,
        vocab_size=50304,
    ),
    data=Data(path="data/fineweb40m", corpus="fineweb", unique_tokens=3_680_000_000, micro_batch=16, accum=32),
    optim=Optim(optimizer="muon", learning_rate=5.4e-3, min_lr=0.0, schedule="linear", warmup_steps=500),
    run=Run(name="fineweb40m_modern", steps=20_000, eval_every=500, save_every=500),
)
