"""A small GPT on parquet files of text, such as public-domain books: the steps of a real run, in minutes.

    python -m jaxgpt.prepare books/*.parquet --out data/books --val-tokens 200e3
    python -m jaxgpt.train --config books

or as one command that prepares the files first: --data.sources books/*.parquet

Device: a GPU (under a minute) or 2 CPU cores (about 10 minutes). 200 steps of 4,096 tokens; 4 layers, width 128, 7.2M
parameters, of which 6.4M are the embedding of GPT-2's vocabulary.
Loss: 5.75 nats per token (2.0 bits per byte) on held-out books after 200 steps; it starts at 10.84, and the unigram
entropy is 6.69.
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(architecture="gpt2", n_layer=4, n_head=4, n_embd=128, block_size=256, vocab_size=50304, loss_chunk=512),
    data=Data(path="data/books", val_tokens=200_000, micro_batch=8, accum=2),
    optim=Optim(learning_rate=3e-3, min_lr=3e-4, warmup_steps=20),
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
