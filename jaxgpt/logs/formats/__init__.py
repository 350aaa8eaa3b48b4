"""The formats of logs, one module each.

A format of lines has a `NAME`, `TRAITS`, `MARKERS` (texts, one of which every line contains), a `PATTERN` that its
lines match, and a `Reader`. A format of tables has `parse_header` instead of markers and a pattern, a generic one
`matches`.
"""

from typing import Any

from jaxgpt.logs.formats import (
    buildnanogpt,
    huggingface,
    jaxgpt_log,
    jsonlines,
    keyvalue,
    levanter,
    lightning,
    litgpt,
    llama2c,
    llmc,
    maxtext,
    modded,
    nanochat,
    nanogpt,
    table,
    tensorboard,
    torchtitan,
)

# In the order in which they are tried.
LINE_FORMATS: tuple[Any, ...] = (
    jaxgpt_log,
    nanogpt,
    llama2c,
    llmc,
    modded,
    nanochat,
    buildnanogpt,
    huggingface,
    litgpt,
    torchtitan,
    maxtext,
    levanter,
)
TABLE_FORMATS: tuple[Any, ...] = (lightning, table)
GENERIC_FORMATS: tuple[Any, ...] = (jsonlines, keyvalue)
BINARY_FORMATS: tuple[Any, ...] = (tensorboard,)
SUPPORTED = (
    "jaxgpt reads its own run folders and their log.jsonl, the output of nanoGPT, llama2.c, litgpt, torchtitan, "
    "MaxText, Levanter and llm.c (also its main.log), the logs of modded-nanogpt and nanochat, build-nanogpt's "
    "log.txt, the output and trainer_state.json of Hugging Face's Trainer, Lightning's metrics.csv, the history of "
    "Weights & Biases as CSV or JSON lines, tables with a header such as step,tokens,lr,train_loss,val_loss (or "
    "--columns step,val), TensorBoard's event files, and any lines that name a step and a loss"
)
