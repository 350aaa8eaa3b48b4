"""GPT-2 124M as nanoGPT trains it, on one GPU: 600,000 steps in the original; here 19,073 steps, 10B tokens.

    python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb --val-tokens 10e6
    python -m jaxgpt.train --config gpt2_124m

Device: one GPU with 24 GB or more (12 GB with --data.micro-batch 8 --data.accum 64). 0.86 GFLOP per token, 8.6 EFLOP
in total: 24 hours at 100 TFLOP/s.
Loss: about 3.3 on FineWeb (llm.c reports 3.27 for this model and these tokens).

The shape and the optimizer are nanoGPT's `train_gpt2.py` (no bias, no dropout, cosine from 6e-4 to 6e-5, warmup of
2,000 steps, betas 0.9 and 0.95, decay 0.1, clipping at 1.0), with 524,288 tokens per step.
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(architecture="gpt2", n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50304),
    data=Data(path="data/fineweb", corpus="fineweb", micro_batch=16, accum=32),
    optim=Optim(learning_rate=6e-4, min_lr=6e-5, warmup_steps=2000),
    run=Run(name="gpt2_124m", steps=19_073, eval_every=500, save_every=500),
)
