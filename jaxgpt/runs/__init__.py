"""A run on disk: its folder, its log, and training in a process of its own. Loads no JAX."""
