"""A small GPT on one text file of about a megabyte, character by character, as nanoGPT's first example does.

    python -m jaxgpt.train --config shakespeare_char --data.sources input.txt

Device: 2 CPU cores, about 3 minutes. The last tenth of the text is for validation. For another text, give it its own
folders: --data.path data/NAME --run.name NAME. A text of 10 MB deserves --run.steps 2000, one of 100 kB
--run.steps 200. Above 256 different characters the run says which --model.vocab-size it needs.
Loss: 1.67 nats per character on the end of Shakespeare's plays (nanoGPT's own settings for a CPU: 1.92).
"""

from jaxgpt.config import Config, Data, Model, Optim, Run

config = Config(
    model=Model(architecture="modern", n_layer=4, n_head=4, n_embd=128, block_size=128, vocab_size=256),
    data=Data(path="data/shakespeare_char", tokenizer="char", micro_batch=8, accum=1),
    optim=Optim(optimizer="muon", learning_rate=1e-2, min_lr=0.0, schedule="linear", warmup_steps=50, beta2=0.99),
    run=Run(
        name="shakespeare_char",
        steps=600,
        eval_every=100,
        eval_tokens=65_536,
        save_every=100,
        log_every=10,
        sample_prompt="\n",
        sample_tokens=400,
    ),
)
