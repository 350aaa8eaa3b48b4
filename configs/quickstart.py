"""The first run: a small GPT on the source code of Python's standard library, on any laptop, without a download.

    python -m jaxgpt.train --config quickstart

Device: 2 CPU cores, at most 4 minutes in total. The corpus is the standard library of the running Python (10 to 30 MB
of source files), prepared with its own tokenizer of 4,096 tokens; 4 layers, width 128, 1.3M parameters.
Loss: about 2.1 bits per byte on held-out files (unigram entropy: 2.5).
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(architecture="gpt2", n_layer=4, n_head=4, n_embd=128, block_size=256, vocab_size=4096, loss_chunk=512),
    data=Data(
        path="data/quickstart",
        sources=("python-stdlib",),
        train_tokenizer=4096,
        val_tokens=200_000,
        micro_batch=4,
        accum=1,
    ),
    optim=Optim(learning_rate=3e-3, min_lr=3e-4, warmup_steps=50, beta2=0.99),
    run=Run(
        name="quickstart",
        steps=450,
        eval_every=150,
        eval_tokens=65_536,
        save_every=150,
        log_every=10,
        sample_prompt="def ",
    ),
)
