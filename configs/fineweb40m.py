"""The reference run: a GPT-2 of 40.56M parameters on FineWeb, 20,000 steps of 524,288 tokens (10.5B tokens).

    python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb40m --val-tokens 10e6
    python -m jaxgpt.train --config fineweb40m

Device: one GPU with 12 GB or more. On an RTX 4070 nanoGPT takes 3,995 ms per step (measured), 22.2 hours in all; the
roofline of that card allows about 3.8 s per step.
Loss: 3.52 +- 0.05 on FineWeb (3.57 was observed at step 13,500). It will not reach 2.5: no model of this size does.

Known of the run: 12 layers, 12 heads, width 384, block 1024, vocabulary 50304, no bias, dropout 0.1,
micro-batch 16, 32 micro-batches per step, 20,000 steps, cosine from 1e-3 to 1e-4, weight decay 0.1, about 3.68B unique
tokens.
Assumed (nanoGPT's defaults): warmup of 2,000 steps, betas 0.9 and 0.95, epsilon 1e-8,
clipping at norm 1.0, evaluation of 200 micro-batches (3,276,800 tokens), exact GELU, seed 1337, bfloat16, the corpus
FineWeb rather than FineWeb-Edu. Different from nanoGPT: each window once per epoch instead of sampling with
replacement, and no dropout on attention probabilities (flash kernels have none).
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(
        architecture="gpt2",
        n_layer=12,
        n_head=12,
        n_embd=384,
        block_size=1024,
        vocab_size=50304,
        bias=False,
        activation="gelu",
        dropout=0.1,
    ),
    data=Data(path="data/fineweb40m", corpus="fineweb", unique_tokens=3_680_000_000, micro_batch=16, accum=32),
    optim=Optim(
        learning_rate=1e-3,
        min_lr=1e-4,
        schedule="cosine",
        warmup_steps=2000,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        grad_clip=1.0,
    ),
    run=Run(name="fineweb40m", steps=20_000, eval_every=500, eval_tokens=3_276_800, save_every=500),
)
