"""The reference run's size and data with the modern block: RMSNorm, RoPE, QK-norm and SwiGLU.

    python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb40m --val-tokens 10e6
    python -m jaxgpt.train --config fineweb40m_modern

Device: one GPU with 12 GB or more; about 22 hours on an RTX 4070 at the reference run's step time.
Loss: below the reference run's 3.52 on FineWeb by a few hundredths, as published comparisons of these blocks at this
scale suggest; not measured yet.

40.56M parameters (within 1 % of fineweb40m), head dimension 64 (6 heads), no dropout: under three epochs over billions
of tokens a model of this size cannot memorize much. Everything else is fineweb40m's, such as its about
3.68B unique tokens.
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
    optim=Optim(learning_rate=1e-3, min_lr=1e-4, warmup_steps=2000),
    run=Run(name="fineweb40m_modern", steps=20_000, eval_every=500, save_every=500),
)
