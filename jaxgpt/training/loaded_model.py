"""A trained model, loaded from a checkpoint of a run."""

import dataclasses
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.model import backend
from jaxgpt.runs.folder import CheckpointRef
from jaxgpt.training import optimizer as optim
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.step import abstract_state, model_graphdef


class LoadedModel(NamedTuple):
    """A trained model after `step` steps: its config, resolved for `mesh`, its parameters and its tokenizer."""

    config: Config
    graphdef: Any
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    step: int


def load_model(checkpoint: CheckpointRef) -> LoadedModel:
    """The model of a run's checkpoint, from the run's folder alone, on one device.

    Raises `CheckpointError` if there is no such checkpoint or it cannot be read.
    """
    folder = checkpoint.run
    folder.check_files()
    config = folder.config()
    one_device = dataclasses.replace(config.mesh, device="auto", data_parallel=1, fsdp=1)
    mesh = make_mesh(one_device, config.data.micro_batch)
    config = resolve_auto(config, mesh)
    with Checkpoints(folder.checkpoints) as checkpoints:
        step = checkpoints.resolve_step(checkpoint.step)
        optimizer = optim.make_optimizer(config)
        state = checkpoints.restore(abstract_state(config, optimizer, mesh), step)
    graphdef = model_graphdef(config.model)
    return LoadedModel(config, graphdef, state.params, tokenizer.load(folder.tokenizer_file), mesh, step)


def resolve_auto(config: Config, mesh: Mesh) -> Config:
    """`config` with the model's `auto` settings replaced by what suits the devices of `mesh`."""
    device = mesh.local_devices[0]
    capability = getattr(device, "compute_capability", "")
    return dataclasses.replace(config, model=backend.resolve_auto(config.model, device.platform, capability))
