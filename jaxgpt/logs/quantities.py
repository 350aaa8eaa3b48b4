"""Which quantity a column or key of a log names, in any usual spelling."""

import re
from functools import lru_cache
from typing import NamedTuple

# The quantities, as a sentence calls them. Losses are in nats per token, times in seconds.
DESCRIPTIONS = {
    "step": "the step",
    "total": "the length of the run",
    "tokens": "the tokens read",
    "lr": "the learning rate",
    "train": "the training loss",
    "val": "the validation loss",
    "val_bits": "the validation loss in bits per byte",
    "seconds": "seconds per step",
    "milliseconds": "milliseconds per step",
    "norm": "the gradient norm",
    "train_ppl": "the training perplexity",
    "val_ppl": "the validation perplexity",
    "error": "the standard error",
    "time": "the time of the record",
    "elapsed": "the seconds since the start",
}
# In the order of preference: of two names of one quantity in a record, the earlier one counts.
ALIASES = {
    "step": "train_global_step trainer_global_step global_step num_updates step steps iter iters iteration iterations "
    "it iter_num trainer_step optimizer_step optim_step update updates train_step training_step metrics_step _step",
    "total": "total_steps max_steps max_iters num_iterations total_iters train_iters num_train_steps",
    "tokens": "total_tokens tokens token tokens_seen train_tokens num_tokens consumed_tokens train_num_tokens "
    "throughput_total_tokens num_input_tokens_seen train_num_input_tokens_seen ntokens_seen n_tokens_seen",
    "lr": "lr learning_rate learningrate",
    "train": "train_loss train loss training_loss trn_loss train_loss_smoothed loss_train value trl "
    "train_cross_entropy train_crossentropyloss learning_loss lm_loss ce_loss cross_entropy reduced_train_loss",
    "val": "val_loss val valid_loss validation_loss valid validation eval_loss test_loss dev_loss loss_val tel",
    "train_ppl": "train_ppl ppl train_perplexity perplexity",
    "val_ppl": "val_ppl valid_ppl validation_ppl eval_ppl val_perplexity valid_perplexity validation_perplexity "
    "eval_perplexity",
    "val_bits": "val_bpb valid_bpb validation_bpb eval_bpb val_bits_per_byte validation_bits_per_byte "
    "eval_bits_per_byte",
    "seconds": "seconds dt step_time sec_per_step time_s iter_time train_dt seconds_per_step s_per_step step_seconds "
    "perf_step_time_seconds throughput_duration time_metrics_end_to_end_s iter_time_s iteration_time "
    "time_per_iteration elapsed_time_per_iteration_s train_step_timing_in_s",
    "milliseconds": "ms time_ms dt_ms step_ms iter_time_ms step_time_ms elapsed_time_per_iteration_ms time_per_step_ms "
    "step_avg",
    "norm": "grad_norm norm gradient_norm gradnorm train_grad_norm",
    "error": "standard_error val_standard_error val_se se stderr",
    "time": "wall_time time timestamp _timestamp",
    "elapsed": "_runtime elapsed elapsed_time elapsed_s total_training_time",
}
RANKS = {alias: (column, rank) for column, names in ALIASES.items() for rank, alias in enumerate(names.split())}
FAMILY_RANK = 100  # of names that only a pattern knows
LOSS = r"(?:(?:lm|ce|cross_?entropy|nll|main|avg|mean|global_avg)_){0,2}loss(?:_(?:step|avg|mean))?"
TRAIN = r"(?:train|training|trn|learning|loss_metrics)"
VAL = r"(?:val|valid|validation|validate|eval|evaluation|test|dev|heldout|validation_metrics)"
OPTIMIZERS = r"\w{0,12}(?:adam|muon|sgd|soap|shampoo|lion|adafactor)\w{0,12}"
FAMILIES = {
    "train": re.compile(rf"(?:{TRAIN}_)?{LOSS}|loss_{TRAIN}"),
    "val": re.compile(rf"{VAL}_{LOSS}|loss_{VAL}"),
    "lr": re.compile(
        r"(?:(?:optim|optimizer|train|training|learning|current|schedule)_){0,2}(?:lr|learning_?rate)"
        rf"(?:_(?:group_?0|pg_?[01]|0|{OPTIMIZERS})){{0,2}}"
    ),
}
LR_OF = re.compile(rf"(?:lr|learning_?rate)[_/-]({OPTIMIZERS})", re.ASCII | re.IGNORECASE)
MAX_NAME = 80  # characters; a longer text is not a name

# Facts of the run, under nanoGPT's names.
HYPERPARAMETER_ALIASES = {
    "learning_rate": "learning_rate lr max_lr peak_lr",
    "min_lr": "min_lr lr_min minimum_lr eta_min",
    "warmup_iters": "warmup_iters warmup_steps lr_warmup_steps num_warmup_steps lr_warmup_iters",
    "weight_decay": "weight_decay adam_weight_decay wd",
    "dropout": "dropout dropout_rate hidden_dropout",
    "optimizer": "optimizer optim optimizer_name opt_type",
    "vocab_size": "vocab_size padded_vocab_size",
    "n_layer": "n_layer n_layers num_layers num_hidden_layers",
    "n_embd": "n_embd d_model hidden_size dim",
    "parameters": "parameters n_params num_params total_params num_parameters total_parameters",
    "tokens_per_step": "tokens_per_step tokens_per_iteration tokens_per_iter total_batch_size tokens_per_batch",
    "total_steps": "total_steps max_steps max_iters num_iterations total_iters train_iters num_train_steps",
    "dataset": "dataset dataset_name",
    "bytes_per_token": "bytes_per_token",
}
HYPERPARAMETERS = {alias: name for name, names in HYPERPARAMETER_ALIASES.items() for alias in names.split()}


class Quantity(NamedTuple):
    """A quantity, and the preference of the name that was read: the lowest rank counts."""

    name: str
    rank: int


@lru_cache(maxsize=4096)
def find_quantity(name: str) -> Quantity | None:
    """The quantity that a column or key names; None for any other name."""
    if len(name) > MAX_NAME:
        return None
    normalized = normalize_name(name)
    if normalized in RANKS:
        return Quantity(*RANKS[normalized])
    for quantity, pattern in FAMILIES.items():
        if pattern.fullmatch(normalized):
            return Quantity(quantity, FAMILY_RANK + len(normalized))
    return None


@lru_cache(maxsize=4096)
def find_hyperparameter(name: str) -> str | None:
    """The fact of the run, under nanoGPT's name, that a key names; None for any other key."""
    if len(name) > MAX_NAME:
        return None
    return HYPERPARAMETERS.get(normalize_name(re.split("[./]", name)[-1]))


def find_optimizer(name: str) -> str | None:
    """The optimizer in the name of a column such as `lr-AdamW`."""
    match = LR_OF.search(name[:MAX_NAME])
    return match[1].lower() if match else None


def normalize_name(name: str) -> str:
    """A column's name in lower case, without its run, its unit and suffixes that do not change its meaning."""
    name = name.strip().strip("\ufeff'\"*` ").lower().rsplit(" - ", 1)[-1]
    name = re.sub(r"\((ms|s)\)", r"_\1", name)
    name = re.sub(r"\((.*?)\)", "", name).strip()
    name = re.sub(r"[\s/.:_-]+", "_", name)
    return re.sub(r"_or_blank$|^(?:metrics|charts)_", "", name)
