"""The model card of an exported model: what the run's folder knows of it, as Markdown for the hub."""

from pathlib import Path
from typing import Any

import jaxgpt
from jaxgpt.budget import plan_file
from jaxgpt.budget.devices import lookup as find_device
from jaxgpt.budget.step_time import energy_kwh
from jaxgpt.config import Config, Model
from jaxgpt.config.model_size import non_embedding_parameters, parameters
from jaxgpt.data.audit_files import RECORD_NAME
from jaxgpt.data.manifest import FILE_NAME
from jaxgpt.errors import JaxgptError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log
from jaxgpt.runs.task_results import read_task_results
from jaxgpt.training.loaded_model import LoadedModel
from jaxgpt.training.records import Scores
from jaxgpt.utils.files import read_json
from jaxgpt.utils.formatting import format_hours

FRONT_MATTER = """---
library_name: transformers
pipeline_tag: text-generation
tags: [jaxgpt]
---
"""
KINDS = ("exact", "near")  # of duplicates
LOADING = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50, do_sample=True)[0]))
```

The tokenizer reads special tokens in a text as ordinary characters, as in training; end-of-text tokens have to be added
by their id. The model was pre-trained on raw text: it continues texts, and does not follow instructions.
"""


def model_card(run: RunFolder, model: LoadedModel, exported: Model, dtype: str) -> str:
    """The card's text. What a run's folder does not have, such as the audit of its data, is left out."""
    config = run.config()
    records = read_log(run.log_file) if run.log_file.is_file() else []
    name = config.run.name
    sections = [
        f"{FRONT_MATTER}\n# {name}\n",
        f"Trained {_origin(config)} with jaxgpt {jaxgpt.__version__}; exported after step {model.step:,} in {dtype}.\n",
        _table("Model", _model_rows(exported)),
        _table("Data", _data_rows(Path(config.data.path), config, model.step)),
        _table("Training", _training_rows(config, records, model.step)),
        _table("Evaluation", _score_rows(records, model.step) | _task_rows(run, model.step)),
        _plan(run),
        LOADING.format(name=name),
    ]
    return "\n".join(section for section in sections if section)


def _origin(config: Config) -> str:
    return f"from the weights of {config.run.init_from}" if config.run.init_from else "from scratch"


def _table(title: str, rows: dict[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines, ""])


def _model_rows(model: Model) -> dict[str, str]:
    heads = f"{model.n_head}" if model.kv_heads == model.n_head else f"{model.n_head} ({model.kv_heads} key/value)"
    return {
        "parameters": f"{parameters(model) / 1e6:.2f}M",
        "parameters outside embeddings": f"{non_embedding_parameters(model) / 1e6:.2f}M",
        "layers, width, heads": f"{model.n_layer}, {model.n_embd}, {heads}",
        "context": f"{model.block_size:,} tokens",
        "vocabulary": f"{model.vocab_size:,}",
    }


def _data_rows(folder: Path, config: Config, step: int) -> dict[str, str]:
    """The sources, the size of the training split, and what an audit has found."""
    rows = {"tokens seen": f"{step * config.tokens_per_step:,}"}
    manifest = _read_json(folder / FILE_NAME)
    if manifest:
        train = manifest["splits"]["train"]
        rows["training split"] = f"{train['tokens']:,} tokens of {train['documents']:,} documents"
        rows["sources"] = ", ".join(source["name"] for source in manifest["sources"]) or "not recorded"
        rows["tokenizer"] = manifest["tokenizer"]["name"]
    return rows | _audit_rows(_read_json(folder / RECORD_NAME))


def _audit_rows(audit: dict[str, Any]) -> dict[str, str]:
    """What the audit of the data says of duplicates, and of validation text that is in the training text."""
    if not audit:
        return {}
    duplicates, leaks = (sum(audit[name][kind]["documents"] for kind in KINDS) for name in ("duplicates", "leakage"))
    return {
        "unique tokens (audit)": f"{audit['effective_unique_tokens']:,} of {audit['tokens']:,}",
        "duplicates (audit)": f"{duplicates:,} of {audit['documents']:,} documents, exact or near",
        "validation documents in the training text (audit)": f"{leaks:,}",
    }


def _training_rows(config: Config, records: list[dict[str, Any]], step: int) -> dict[str, str]:
    optim = config.optim
    seconds = sum(record["seconds"] for record in records if record["kind"] == "step" and record["step"] < step)
    devices = [record["device"] for record in records if record["kind"] == "start" and "device" in record]
    rows = {
        "tokens per step": f"{config.tokens_per_step:,}",
        "optimizer": f"{optim.optimizer}, learning rate {optim.learning_rate:g}, {optim.schedule} to {optim.min_lr:g}",
    }
    if devices:
        rows["device"] = f"{devices[-1]['count']} x {devices[-1]['kind']}"
    if seconds:
        rows["time in steps"] = format_hours(seconds)
    known = find_device(devices[-1]["kind"]) if devices else None
    if known and seconds:
        kwh = energy_kwh(known, seconds, devices[-1]["count"])
        rows["energy, estimated from the device's power"] = f"{kwh:.2g} kWh"
    return rows


def _score_rows(records: list[dict[str, Any]], step: int) -> dict[str, str]:
    """The evaluation of the exported step, if there was one."""
    evaluations = [record for record in records if record["kind"] == "eval" and record["step"] == step]
    if not evaluations:
        return {}
    scores = Scores.from_record(evaluations[-1])
    rows = {"training text": str(scores.train)}
    if scores.val:
        rows["validation text"] = str(scores.val)
    return {f"loss on {name}, nats per token": value for name, value in rows.items()}


def _task_rows(run: RunFolder, step: int) -> dict[str, str]:
    """The results of lm-evaluation-harness on the exported step."""
    results = [result for result in read_task_results(run) if result.step == step]
    return {f"{result.task}, {result.metric} ({result.documents})": str(result) for result in results}


def _plan(run: RunFolder) -> str:
    """The plan from before the first step, and what the run did; empty if it has none."""
    try:
        lines = plan_file.compare_with_actual(run)
    except JaxgptError:
        return ""
    rows = [f"| {line.quantity} | {line.planned} | {line.actual} |" for line in lines]
    return "\n".join(["## Plan and actual run", "", "| | planned | actual |", "|---|---|---|", *rows, ""])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        return {}
    return values
