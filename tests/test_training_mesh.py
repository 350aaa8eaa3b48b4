"""Layouts of the mesh: data parallel, sharded state, and changes between them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.steps import make_config, token_block
from helpers.training import leaf_bytes

from jaxgpt.config import Config, Mesh, Run
from jaxgpt.errors import ConfigError
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.mesh import batch_sharding, make_mesh, state_shardings

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"


class Layout:
    """The compiled steps of a config on some of the devices."""

    def __init__(self, config: Config, data: int, fsdp: int) -> None:
        self.config = config
        self.mesh = make_mesh(Mesh(data_parallel=data, fsdp=fsdp), config.data.micro_batch)
        self.optimizer = optim.make_optimizer(config)
        graphdef = step.model_graphdef(config.model)
        self.init = step.compile_init(config, self.optimizer, self.mesh)
        self.train_step = step.compile_train_step(config, graphdef, self.optimizer, self.mesh)
        self.eval_step = step.compile_eval_step(config, graphdef, self.mesh)

    def template(self) -> step.TrainState:
        return step.abstract_state(self.config, self.optimizer, self.mesh)

    def block(self, number: int) -> jax.Array:
        return jax.device_put(token_block(self.config, number), batch_sharding(self.mesh))

    def train(self, state: step.TrainState, first: int, last: int) -> tuple[step.TrainState, list[float]]:
        losses = []
        for number in range(first, last):
            state, metrics = self.train_step(state, self.block(number))
            losses.append(float(metrics.loss))
        return state, losses


def run_of(optimizer: str = "adamw", micro_batch: int = 4) -> Config:
    return make_config(micro_batch=micro_batch, dropout=0.1).replace({"optim": {"optimizer": optimizer}})


@pytest.mark.parametrize("optimizer", ["adamw", "normuon"])
def test_sharded_state_trains_and_evaluates_alike(optimizer: str) -> None:
    config = run_of(optimizer)
    results = []
    for data, fsdp in ((1, 1), (1, 2)):
        layout = Layout(config, data, fsdp)
        state, losses = layout.train(layout.init(), 0, 5)
        evaluated = layout.eval_step(state.params, layout.block(9))
        results.append((losses, np.asarray(evaluated), jax.tree.map(np.asarray, state.params)))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=2e-6), *results)


def test_each_device_holds_its_part_of_the_state() -> None:
    layout = Layout(run_of(), 1, 2)
    state, _ = layout.train(layout.init(), 0, 1)
    for leaf in jax.tree.leaves((layout.init(), state)):
        parts = [shard.data.size for shard in leaf.addressable_shards]
        assert parts == [max(leaf.size // 2, 1)] * 2


def test_the_largest_divisible_axis_is_sharded() -> None:
    layout = Layout(run_of(), 1, 2)
    leaves = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((6, 8), (8, 6), (7, 6), (3, 5), ())]
    specs = [sharding.spec for sharding in state_shardings(layout.mesh, leaves)]
    assert [tuple(spec) for spec in specs] == [(None, "fsdp"), ("fsdp",), (None, "fsdp"), (), ()]


@pytest.mark.parametrize("layouts", [((1, 2), (2, 1)), ((1, 1), (1, 2))], ids=str)
def test_checkpoint_is_the_same_on_another_layout(layouts: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    before, after = (Layout(run_of("muon"), *layout) for layout in layouts)
    state, _ = before.train(before.init(), 0, 2)
    with Checkpoints(tmp_path, Run()) as checkpoints:
        checkpoints.save(2, state, None)
        checkpoints.wait()
        restored = checkpoints.restore(after.template(), 2)
    assert leaf_bytes(restored) == leaf_bytes(state)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, restored)
    assert shardings == jax.tree.map(lambda leaf: leaf.sharding, after.template())


@pytest.mark.parametrize(
    ("mesh", "micro_batch", "words"),
    [
        (Mesh(fsdp=3), 3, "mesh.data_parallel = 1 times mesh.fsdp = 3; JAX sees 2"),
        (Mesh(data_parallel=2, fsdp=2), 4, "mesh.data_parallel = 2 times mesh.fsdp = 2; JAX sees 2"),
        (Mesh(fsdp=2), 3, "data.micro_batch = 3 is not divisible by 2 devices"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(mesh: Mesh, micro_batch: int, words: str) -> None:
    with pytest.raises(ConfigError, match="C013") as caught:
        make_mesh(mesh, micro_batch)
    assert words in str(caught.value)


def test_eight_devices_hand_a_run_from_layout_to_layout(tmp_path: Path) -> None:
    """8 → 4 → 2 → 1 → 8 devices by checkpoints, 6 steps each, on the losses of one device within 1e-5."""
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {"XLA_FLAGS": EIGHT_DEVICES, "JAX_PLATFORMS": "cpu"} | fast
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    call = f"test_training_mesh.hand_over({str(tmp_path)!r})"
    code = f"import sys; sys.path[:0] = {paths!r}; import test_training_mesh; {call}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    handed_over, alone, inexact = json.loads(done.stdout)
    assert len(alone) == 30
    np.testing.assert_allclose(handed_over, alone, atol=1e-5)
    assert inexact == []


def hand_over(folder: str) -> None:
    """Prints the losses of a run that changes its layout, those of one device, and the restores that were not exact.

    Needs eight devices.
    """
    config = run_of("muon", micro_batch=8)
    alone = Layout(config, 1, 1)
    expected = alone.train(alone.init(), 0, 30)[1]
    state, losses, inexact = Layout(config, 2, 4).init(), [], []
    with Checkpoints(Path(folder), Run()) as checkpoints:
        for number, (data, fsdp) in enumerate(((2, 4), (4, 1), (1, 2), (1, 1), (1, 8))):
            layout, step = Layout(config, data, fsdp), 6 * number
            checkpoints.save(step, state, None)
            checkpoints.wait()
            restored = checkpoints.restore(layout.template(), step)
            if leaf_bytes(restored) != leaf_bytes(state):
                inexact.append((data, fsdp))
            state, part = layout.train(restored, step, step + 6)
            losses += part
    print(json.dumps([losses, expected, inexact]))
