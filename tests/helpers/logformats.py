"""Logs of trainers other than nanoGPT's relatives, made up line by line: shapes are real, figures are not."""

import json
import math
from typing import Any

from helpers import logformats_jax
from helpers.logsamples import loss

PEAK = 6e-4


def rate(step: int, total: int) -> float:
    return PEAK * (1 - step / total)


def huggingface_entries(total: int = 4000, every: int = 100) -> list[dict[str, Any]]:
    """The history of a Trainer that logs every `every` steps and evaluates every fifth time; half of an epoch."""
    entries: list[dict[str, Any]] = []
    for step in range(every, total + 1, every):
        epoch = step / (2 * total)
        entries.append(
            {"loss": round(loss(step), 4), "grad_norm": 0.6, "learning_rate": rate(step, total), "epoch": epoch}
            | {"step": step}
        )
        if step % (5 * every) == 0:
            speed = {"eval_runtime": 30.0, "eval_samples_per_second": 210.1, "eval_steps_per_second": 13.0}
            entries.append({"eval_loss": round(loss(step) + 0.02, 4)} | speed | {"epoch": epoch, "step": step})
    speed = {"train_runtime": 2240.0, "train_samples_per_second": 57.0, "train_steps_per_second": 1.7857}
    return [*entries, speed | {"total_flos": 1.2e18, "train_loss": 4.2, "epoch": 0.5, "step": total}]


def huggingface_state() -> str:
    entries = huggingface_entries()
    state = {"best_metric": None, "epoch": 0.5, "global_step": 4000, "log_history": entries, "max_steps": 4000}
    return json.dumps(state | {"num_train_epochs": 1, "stateful_callbacks": {"a": {"args": {}}}}, indent=2) + "\n"


HUGGINGFACE_HEAD = """***** Running training *****
  Num examples = 128,000
  Num Epochs = 1
  Total train batch size (w. parallel, distributed & accumulation) = 32
  Total optimization steps = 8,000
  Number of trainable parameters = 124,439,808
"""


def huggingface_output(quoted: bool = False) -> str:
    """What the Trainer prints; from its fifth version on the numbers are quoted."""
    lines = []
    for entry in huggingface_entries():
        printed = {name: value for name, value in entry.items() if name not in ("step", "total_flos")}
        lines.append(str({name: f"{value:.5g}" for name, value in printed.items()} if quoted else printed))
    return "\n".join(lines) + "\n"


def huggingface_bars() -> str:
    """With the bar that is redrawn after every line; evaluations have a shorter one."""
    lines = []
    for entry in huggingface_entries()[:-1]:
        step = entry["step"]
        clock = f"{step // 120:02d}:{step // 2 % 60:02d}"
        bar = f" 10%|█         | {step}/8000 [{clock}<1:01:01,  2.00it/s]"
        printed = {name: value for name, value in entry.items() if name != "step"}
        lines += [str(printed), f"{bar}\r 50%|██  | 3/6 [00:01<00:01,  2.00it/s]"]
    return "\n".join(lines) + "\n"


LITGPT_HEAD = """{'data': {'class_path': 'litgpt.data.OpenWebText'},
 'devices': 1,
 'optimizer': {'class_path': 'torch.optim.AdamW', 'init_args': {'lr': 0.0004, 'weight_decay': 0.1}},
 'train': TrainArgs(save_interval=1000, log_interval=1, global_batch_size=512, micro_batch_size=4, lr_warmup_steps=200,
           max_tokens=157286400, max_steps=None, max_seq_length=1024, tie_embeddings=False, min_lr=4e-05)}
Time to instantiate model: 0.02 seconds.
Total parameters: 162,322,944
Validating ...
Measured TFLOPs: 4.10
"""


def litgpt(steps: int = 300) -> str:
    lines, val = [], "n/a"
    for step in range(1, steps + 1):
        lines.append(
            f"Epoch 1 | iter {128 * step} step {step} | loss train: {loss(step - 1):.3f}, val: {val} | "
            f"iter time: 100.00 ms (step) remaining time: 1 day, 3:21:10"
        )
        if step % 100 == 0:
            lines += ["Validating ...", f"iter {128 * step}: val loss {loss(step):.4f}, val time: 9000.00 ms"]
            val = f"{loss(step):.3f}"
    return LITGPT_HEAD + "\n".join(lines) + "\n"


def litgpt_iterations(steps: int = 60) -> str:
    """The earliest form: one line per micro-batch, two per step."""
    lines = []
    for number in range(2 * steps):
        ends = number % 2 == 1
        end = f"{215.0 if ends else 198.0:.2f}ms{' (optimizer.step)' if ends else ''}"
        micro = loss(number // 2) + (0.1 if ends else -0.1)
        lines.append(f"iter {number} step {(number + 1) // 2}: loss {micro:.4f}, iter time: {end}")
    return "\n".join(lines) + "\n"


def llama2c(last: int = 300) -> str:
    lines = [
        "tokens per iteration will be: 131,072",
        "breaks down as: 4 grad accum steps * 1 processes * 128 batch size",
    ]
    for step in range(last + 1):
        if step % 100 == 0:
            lines.append(f"step {step}: train loss {loss(step) - 0.01:.4f}, val loss {loss(step):.4f}")
        if step % 10 == 0:
            slow = 9000.0 if step % 100 == 0 else 1234.5
            lines.append(f"{step} | loss {loss(step):.4f} | lr {PEAK:e} | {slow:.2f}ms | mfu 12.10%")
    return "\n".join(lines) + "\n"


def lightning(steps: int = 1000) -> str:
    """The rows of `CSVLogger` with a `LearningRateMonitor`: each of them states a part of a step."""
    lines = ["epoch,lr-AdamW,step,train_loss_epoch,train_loss_step,val_loss"]
    for step in range(49, steps, 50):
        lines += [f",{rate(step, 2 * steps)},{step},,,", f"0,,{step},,{loss(step)},"]
        if (step + 1) % 250 == 0:
            lines.append(f"0,,{step},,,{loss(step + 1)}")
    return "\n".join([*lines, f"0,,{steps - 1},3.7,,"]) + "\n"


def wandb(steps: int = 2000) -> str:
    """An exported history: an evaluation takes 30 s, which its own row shows; system metrics have rows too."""
    clock, records = 12.0, []
    for step in range(0, steps + 1, 100):
        base = {"_step": step, "_runtime": clock, "_timestamp": 1.7e9 + clock}
        records.append(base | {"train/loss": loss(step), "train/lr": PEAK, "train/perplexity": math.exp(loss(step))})
        if step % 500 == 0:
            clock += 30.0
            records.append(base | {"_runtime": clock, "_timestamp": 1.7e9 + clock, "val/loss": loss(step) + 0.02})
        records.append({"_step": step, "_runtime": clock, "system/gpu.0.memory": 71.5})
        clock += 40.0
    return "".join(json.dumps(record) + "\n" for record in records)


def levanter_json(steps: int = 400) -> str:
    """Levanter's `json_logger`: the tokens of a line include its own step."""
    hparams = {"optimizer": {"learning_rate": PEAK, "weight_decay": 0.2}, "trainer": {"num_train_steps": 4000}}
    records: list[dict[str, Any]] = [{"tracker": "json_logger", "event": "hparams", "hparams": hparams}]
    for step in range(0, steps, 10):
        metrics = {
            "train/loss": loss(step),
            "throughput/duration": 0.5,
            "throughput/total_tokens": (step + 1) * 524_288,
        }
        metrics["optim/learning_rate"] = PEAK
        records.append({"tracker": "json_logger", "event": "log", "step": step, "metrics": metrics})
        if step % 100 == 90:
            evaluation = {"eval/loss": loss(step), "eval/bpb": loss(step) / math.log(2) / 4.5}
            records.append({"tracker": "json_logger", "event": "log", "step": step, "metrics": evaluation})
    return "".join(json.dumps(record) + "\n" for record in records)


def keyvalue(steps: int = 1000) -> str:
    lines = ["Namespace(lr=0.0006, weight_decay=0.1, optimizer='muon', vocab_size=50257, dropout=0.0)"]
    for step in range(0, steps, 10):
        lines.append(f"INFO trainer Step {step}/5000 | Train loss: {loss(step):.4f} | LR: {PEAK:.2e} | dt: 250.00ms")
        if step % 100 == 90:
            lines.append(f"INFO trainer Validation loss: {loss(step) + 0.02:.4f}")
    return "\n".join(lines) + "\n"


SAMPLES = {
    "huggingface": HUGGINGFACE_HEAD + huggingface_output(),
    "litgpt": litgpt(),
    "llama2c": llama2c(),
    "lightning": lightning(),
    "jsonlines": wandb(),
    "keyvalue": keyvalue(),
    "torchtitan": logformats_jax.torchtitan(),
    "maxtext": logformats_jax.maxtext(),
    "levanter": logformats_jax.levanter(),
}
OTHERS = {
    "huggingface": (huggingface_state(), huggingface_bars(), huggingface_output(quoted=True)),
    "litgpt": (litgpt_iterations(),),
    "jsonlines": (levanter_json(),),
}
