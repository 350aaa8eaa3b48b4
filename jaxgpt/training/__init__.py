"""The training step, its inputs and outputs: optimizer, batches, checkpoints, metrics, console."""
