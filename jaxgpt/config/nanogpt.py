"""nanoGPT's option names: those that mean a field of the config, and what to use instead of the others."""

ALIASES = {
    "max_iters": "run.steps",
    "batch_size": "data.micro_batch",
    "gradient_accumulation_steps": "data.accum",
    "dataset": "data.path",
    "warmup_iters": "optim.warmup_steps",
    "lr_decay_iters": "optim.decay_steps",
    "log_interval": "run.log_every",
    "eval_interval": "run.eval_every",
    "out_dir": "run.dir",
    "seed": "run.seed",
}

UNSUPPORTED = {
    "eval_iters": "evaluation is sized in tokens: --run.eval-tokens (nanoGPT's 200 iters of 16 x 1024 are 3276800)",
    "eval_only": "python -m jaxgpt.evaluate RUN",
    "always_save_checkpoint": "latest and best are both kept: --run.keep-latest, --run.keep-best",
    "decay_lr": "--optim.schedule constant",
    "compile": "the step is always compiled",
    "backend": "JAX finds the devices: --mesh.device, --mesh.data-parallel",
    "wandb_log": "--run.trackers wandb",
    "wandb_project": "WANDB_PROJECT=NAME in the environment, with --run.trackers wandb",
    "wandb_run_name": "--run.name",
    "set": "write the field as an option: --optim.learning-rate 3e-4",
}
