"""What a run's log says, whoever wrote it. Loads no JAX."""
