"""The config of a run that starts from given weights: the network is theirs."""

from collections.abc import Collection
from typing import Any

from jaxgpt.config import Config, Model
from jaxgpt.convert.source import read_weights
from jaxgpt.convert.weights import NETWORK_FIELDS
from jaxgpt.errors import ConfigError
from jaxgpt.runs.folder import RunFolder


def resolve_network(config: Config, given: Collection[str], fork: RunFolder | None = None) -> Config:
    """`config` with the network of its `run.init_from`, or of the run itself or its `fork` where these exist already.

    The context may be shorter than that of the weights. `given` are the fields of the model that the command line sets.
    Raises `ConfigError` C083 if one of these or `fork` contradicts the weights, and what `read_weights` raises.
    """
    if not config.run.init_from:
        return config
    source = _network(config, fork)
    network: dict[str, Any] = {name: getattr(source, name) for name in NETWORK_FIELDS}
    for name in given:
        _check_given(name, config.model, source)
    block_size = min(config.model.block_size, source.block_size)
    return config.replace({"model": {**network, "block_size": block_size}})


def _network(config: Config, fork: RunFolder | None) -> Model:
    own = RunFolder.from_config(config)
    if own.config_file.exists():
        return own.config().model
    if fork is None:
        return read_weights(config.run.init_from).model  # every value is read: they may not be finite
    fork.check_init_from(config)
    return fork.config().model


def _check_given(name: str, model: Model, source: Model) -> None:
    given, own = getattr(model, name), getattr(source, name)
    fits = given <= own if name == "block_size" else given == own
    if (name in NETWORK_FIELDS or name == "block_size") and not fits:
        message = f"model.{name} = {given}; the weights of run.init_from have {own}"
        raise ConfigError("C083", message, "leave the option out: the network is that of the weights")
