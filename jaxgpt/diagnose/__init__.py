"""During and after the run: where it is heading. Loads no JAX."""
