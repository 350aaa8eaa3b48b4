"""What a run is: its config, the files and options that set one, and facts that follow from it. Loads no JAX."""

from jaxgpt.config.schema import Config, Data, Mesh, Model, Optim, Run, sections

__all__ = ["Config", "Data", "Mesh", "Model", "Optim", "Run", "sections"]
