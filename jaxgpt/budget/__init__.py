"""Before the run: what it costs. Loads no JAX."""
