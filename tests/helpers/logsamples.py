"""Logs as each program writes them, made up line by line: shapes are real, figures are not."""

import json
import math
from typing import Any

from jaxgpt.config import Config, Data, Model, Optim, Run

CONFIG = Config(
    model=Model(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=64, dropout=0.1),
    data=Data(path="nowhere", micro_batch=2, accum=2),
    optim=Optim(learning_rate=1e-3, min_lr=1e-4, warmup_steps=10),
    run=Run(name="small", steps=100, eval_tokens=640),
)


def loss(step: int) -> float:
    return 3.0 + 7.0 / math.sqrt(1 + step)


def jaxgpt_records(steps: int = 60, first: int = 0, config: Config | None = CONFIG) -> list[dict[str, Any]]:
    """Records of one process: a step takes 2 s (the first 30), an evaluation 5 s, a save 1 s, every 20 steps."""
    clock = 1000.0
    records: list[dict[str, Any]] = [{"kind": "start", "time": clock, "step": first, "device": {"kind": "RTX 4070"}}]
    if config:
        records[0]["config"] = config.to_dict()
    for step in range(first, first + steps):
        seconds = 30.0 if step == first else 2.0
        clock += seconds
        rate = 1e-3 * min(1.0, (step + 1) / 11)
        entry = {"loss": loss(step), "grad_norm": 1.0, "learning_rate": rate, "seconds": seconds}
        records.append({"kind": "step", "time": clock, "step": step, **entry})
        if (step + 1) % 20 == 0:
            clock += 5.0
            scores = {"train_loss": loss(step) - 0.1, "val_loss": loss(step), "val_standard_error": 0.01}
            records.append({"kind": "eval", "time": clock, "step": step + 1, **scores})
            clock += 1.0
            records.append({"kind": "save", "time": clock, "step": step + 1})
    return records


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


NANOGPT_HEAD = """Overriding config with config/train_small.py:
# a small run
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 4 * 8
max_iters = 20000 # as long as it takes
lr_decay_iters = 20000
learning_rate = 1e-3
min_lr = 1e-4
dataset = 'openwebtext'

Overriding: n_embd = 384
Overriding: dropout = 0.1
tokens per iteration will be: 524,288
found vocab_size = 50304 (inside data/openwebtext/meta.pkl)
Initializing a new model from scratch
number of parameters: 40.56M
num decayed parameter tensors: 50, with 40,957,056 parameters
num non-decayed parameter tensors: 25, with 9,600 parameters
using fused AdamW: True
compiling the model... (takes a ~minute)
"""


def nanogpt(first: int = 0, last: int = 1000, every: int = 500, log: int = 10) -> str:
    """What one process prints: evaluation and saving at multiples of `every`, inside `time`."""
    lines = []
    for step in range(first, last + 1):
        if step % every == 0:
            lines.append(f"step {step}: train loss {loss(step) - 0.01:.4f}, val loss {loss(step):.4f}")
            lines += ["saving checkpoint to out"] if step > 0 else []
        if step % log == 0:
            slow = 35392.0 if step in (first,) or step % every == 0 else 3995.11
            mfu = -100.0 if step - first < 5 * log else 12.1
            lines.append(f"iter {step}: loss {loss(step):.4f}, time {slow:.2f}ms, mfu {mfu:.2f}%")
    return "\n".join(lines) + "\n"


def llmc(steps: int = 1000, peak: float = 6e-4, warmup: int = 70, total: int = 1000) -> str:
    lines = []
    for step in range(steps + 1):
        if step % 250 == 0:
            lines += [f"s:{step} eval:0.2461", f"s:{step} tel:{loss(step):.4f}"]
        if step < steps:
            fallen = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
            rate = peak * (step + 1) / warmup if step < warmup else peak * fallen
            lines.append(f"s:{step} trl:{loss(step):.4f} lr:{rate:.6f} norm:0.90")
    return "\n".join(lines) + "\n"


LLMC_HEAD = """+-----------------------+----------------------------------------------------+
| Parameter             | Value                                              |
| train data pattern    | dev/data/fineweb10B/fineweb_train_*.bin            |
| micro batch size B    | 56                                                 |
| sequence length T     | 1024                                               |
| total batch size      | 458752                                             |
| LR scheduler          | cosine                                             |
| learning rate (LR)    | 2.000000e-03                                       |
| warmup iterations     | 700                                                |
| final LR fraction     | 0.000000e+00                                       |
| weight decay          | 1.000000e-01                                       |
| device                | NVIDIA GeForce RTX 4090                            |
| max_sequence_length T | 1024                                               |
| vocab_size V          | 50257                                              |
| channels C            | 768                                                |
| num_parameters        | 124475904                                          |
| train_num_batches     | 21479                                              |
| val_num_batches       | 20                                                 |
| num_processes         | 1                                                  |
"""
LLMC_SCREEN = (
    LLMC_HEAD
    + """val loss 11.006021
step    1/21479 | loss 11.007906 (nanz)| norm 16.3235 (+nanz)| lr 2.86e-06 | 2734.72 ms | -100.0% bf16 MFU | 167751 tok
step    2/21479 | loss 10.829729 (+nanz)| norm 15.0011 (+nanz)| lr 5.71e-06 | 2391.52 ms | -100.0% bf16 MFU | 191824 tok
step    3/21479 | loss 10.543671 (+0.12z)| norm 11.0997 (-0.4z)| lr 8.57e-06 | 2397.11 ms | 40.1% bf16 MFU | 191595 tok
val loss 10.402100
"""
)


def modded(train_loss: bool = True, total: int = 200) -> str:
    """The source, then the lines; the clock is set back after ten updates."""
    source = """====================================================================================================
import os
class Hyperparameters:
    input_bin : str = 'data/fineweb10B/fineweb_train_*.bin'
    batch_size : int = 8*64 # batch size, in sequences, across all devices
    sequence_length : int = 1024 # sequence length, in tokens
    num_iterations : int = 200 # number of iterations to run
    learning_rate : float = 0.0036
    warmup_iters : int = 0
    warmdown_iters : int = 60 # number of iterations of linear warmup/warmdown
    val_tokens : int = 10485760 # how many tokens of validation data?
        print(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{training_time_ms:.0f}ms")
====================================================================================================
Running pytorch 2.6.0.dev20241010+cu124 compiled for CUDA 12.4
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:04:00.0 Off |                    0 |
====================================================================================================
"""
    lines, clock = [], 285.0
    for step in range(total + 1):
        average = "nan" if step < 13 else "213.66"
        if step % 50 == 0:
            lines.append(f"step:{step}/{total} val_loss:{loss(step):.4f} train_time:{clock:.0f}ms step_avg:{average}ms")
        if step < total:
            clock = 214.0 if step == 10 else clock + (74_416 if step == 0 else 214)
            train_text = f"train_loss:{loss(step):.4f} " if train_loss else ""
            lines.append(f"step:{step + 1}/{total} {train_text}train_time:{clock:.0f}ms step_avg:{average}ms")
    return source + "\n".join(lines) + "\npeak memory allocated: 30908 MiB reserved: 46472 MiB\n"


def nanochat(total: int = 400, bytes_per_token: float = 4.5) -> str:
    lines = ["Vocab size: 65,536", "Number of parameters: 561,971,200", "Total batch size 524,288 => gradient accum: 2"]
    for step in range(total + 1):
        if step % 50 == 0:
            bits = loss(step) / math.log(2) / bytes_per_token
            lines.append(f"Step {step:05d} | Validation bpb: {bits:.6f}")
        if step % 100 == 0:
            lines.append(f"Step {step:05d} | CORE metric: 0.1234")
        if step < total:
            share = min(1.0, (total - step) / (0.5 * total))
            lines.append(
                f"step {step:05d}/{total:05d} ({step / total:.2%}) | loss: {loss(step):.6f} | lrm: {share:.2f} | "
                f"dt: 1234.56ms | tok/sec: 424,242 | bf16_mfu: 45.67 | epoch: 1 pq: 0 rg: 12 | total time: 1.85m"
            )
    return "\n".join(lines) + "\n"


def buildnanogpt(steps: int = 500) -> str:
    lines = []
    for step in range(steps + 1):
        if step % 250 == 0:
            lines += [f"{step} val {loss(step):.4f}", f"{step} hella 0.2600"]
        lines.append(f"{step} train {loss(step):.6f}")
    return "\n".join(lines) + "\n"


BUILD_SCREEN = """total desired batch size: 524288
=> calculated gradient accumulation steps: 32
using fused AdamW: True
validation loss: 10.9541
HellaSwag accuracy: 2463/10042=0.2453
step     0 | loss: 10.955029 | lr 8.3916e-07 | norm: 15.2819 | dt: 30240.11ms | tok/sec: 17337.53
step     1 | loss: 10.899112 | lr 1.6783e-06 | norm: 14.9312 | dt: 2812.52ms | tok/sec: 186411.22
step     2 | loss: 10.801113 | lr 2.5175e-06 | norm: 13.1102 | dt: 2810.10ms | tok/sec: 186572.00
validation loss: 10.6122
step     3 | loss: 10.701113 | lr 3.3566e-06 | norm: 12.1102 | dt: 2811.10ms | tok/sec: 186506.00
"""


def table(separator: str = ",") -> str:
    rows = [("step", "tokens", "lr", "train_loss", "val_loss")]
    for step in range(0, 2001, 100):
        train = f"{loss(step):.4f}" if step % 200 else ""
        rows.append(
            (str(step), str(step * 524_288), f"{1e-3 * min(1, (step + 1) / 201):.6g}", train, f"{loss(step):.4f}")
        )
    return "".join(separator.join(row) + "\n" for row in rows)


MARKDOWN = """# What my run did

| step | train loss | val loss |
|-----:|-----------:|---------:|
| 12,000 | 3.61 | **3.5935** |
| 13,500 |      | 3.5700 |
| 14,500 | 3.6415 | 3.5696 |
"""

ALL = {
    "jaxgpt": jsonl(jaxgpt_records()) + jsonl(jaxgpt_records(20, 60)),
    "nanogpt": NANOGPT_HEAD + nanogpt(),
    "llmc": llmc(),
    "modded": modded(),
    "nanochat": nanochat(),
    "buildnanogpt": buildnanogpt(),
    "table": table(),
}
SCREENS = {"llmc": LLMC_SCREEN, "buildnanogpt": BUILD_SCREEN}
