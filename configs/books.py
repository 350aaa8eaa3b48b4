"""A small GPT on parquet files of text, such as public-domain books: the road of a real run in minutes.

    python -m jaxgpt.prepare books/*.parquet --out data/books --val-tokens 500e3
    python -m jaxgpt.train --config configs/books.py

or in one command, which prepares the files first: --data.sources books/*.parquet

Device: a GPU (about a minute) or a CPU (about 40 minutes on 2 cores). 200 steps of 16,384 tokens, 4 layers, width 256,
16M parameters, most of them GPT-2's vocabulary.
Loss: about 5.9 nats per token on held-out books after 200 steps, from 10.8; --run.steps 2000 brings it near 5.
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(architecture="gpt2", n_layer=4, n_head=4, n_embd=256, block_size=512, vocab_size=50304),
    data=Data(path="data/books", val_tokens=500_000, micro_batch=8, accum=4),
    optim=Optim(learning_rate=2e-3, min_lr=2e-4, warmup_steps=20),
    run=Run(
        name="books",
        steps=200,
        eval_every=50,
        eval_tokens=65_536,
        save_every=50,
        log_every=1,
        sample_prompt="It was",
    ),
)
