"""The first run: a small GPT on the source code of Python's standard library, on any laptop, without a download.

    python -m jaxgpt.train --config quickstart

Device: 2 CPU cores, at most 4 minutes in total. The corpus is the standard library of the running Python without its
tests and generated tables (about 10 MB of source files), prepared with its own tokenizer of 2,048 tokens; 3 layers,
width 128, 0.9M parameters.
Loss: about 1.7 bits per byte on held-out files (unigram entropy: 2.7).
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(
        architecture="modern", n_layer=3, n_head=4, n_embd=128, block_size=128, vocab_size=2048, loss_chunk=512
    ),
    data=Data(
        path="data/quickstart",
        sources=("python-stdlib",),
        train_tokenizer=2048,
        val_tokens=200_000,
        micro_batch=8,
        accum=1,
    ),
    optim=Optim(optimizer="muon", learning_rate=7e-3, min_lr=0.0, schedule="linear", warmup_steps=50, beta2=0.99),
    run=Run(
        name="quickstart",
        steps=600,
        eval_every=150,
        eval_tokens=65_536,
        save_every=150,
        log_every=10,
        sample_prompt="class Parser:\n    def __init__(self",
        sample_tokens=250,
        sample_temperature=0.5,
    ),
)
