"""nanoGPT's `ckpt.pt`: read exactly, without PyTorch, and with nothing in it run."""

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.torch_file import write_torch_file
from test_convert import SMALL, random_weights

from jaxgpt.convert import gpt2, nanogpt, source
from jaxgpt.convert.weights import Weights
from jaxgpt.errors import DataError, JaxgptError


def nanogpt_state(weights: Weights, prefix: str = "") -> dict[str, Any]:
    """What nanoGPT's train.py saves of a model."""
    model = weights.model
    tensors = {
        name: array.T if array.ndim == 2 and ".h." in name else array
        for name, array in gpt2.to_tensors(weights.arrays, model).items()
        if model.bias or not name.endswith(".bias")
    }
    tensors["lm_head.weight"] = weights.arrays["tokens.embedding"]
    settings = {name: getattr(model, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    return {
        "model": {f"{prefix}{name}": tensor for name, tensor in tensors.items()},
        "optimizer": {
            "state": {0: {"step": np.ones((), np.float32), "exp_avg": np.ones(4, np.float32)}},
            "param_groups": [],
        },
        "model_args": {**settings, "bias": model.bias, "dropout": 0.0},
        "iter_num": 20,
        "best_val_loss": np.ones((), np.float32),
        "config": {"dataset": "shakespeare"},
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_of_nanogpt_is_read_exactly(bias: bool, prefix: str, tmp_path: Path) -> None:
    weights = random_weights(dataclasses.replace(SMALL, bias=bias))
    file = write_torch_file(tmp_path / "ckpt.pt", nanogpt_state(weights, prefix))
    read = source.read_weights(str(file))
    assert read.model == dataclasses.replace(SMALL, bias=bias, dtype="auto", attention="auto")
    assert {n: a.tobytes() for n, a in read.arrays.items()} == {n: a.tobytes() for n, a in weights.arrays.items()}


def test_a_file_of_nanogpt_from_pytorch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weights = random_weights(SMALL)
    state = nanogpt_state(weights) | {"optimizer": {}, "best_val_loss": torch.tensor(2.5)}
    state["model"] = {n: torch.tensor(np.ascontiguousarray(t)) for n, t in state["model"].items()}
    state["model"]["transformer.h.0.mlp.c_fc.weight"] = (
        state["model"]["transformer.h.0.mlp.c_fc.weight"].t().clone().t()
    )
    torch.save(state, tmp_path / "ckpt.pt")
    read = nanogpt.read_checkpoint(tmp_path / "ckpt.pt")
    assert {n: a.tobytes() for n, a in read.arrays.items()} == {n: a.tobytes() for n, a in weights.arrays.items()}


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_nothing_in_a_pickle_runs(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive:
        archive.writestr("ckpt/data.pkl", pickle.dumps({"model": Hostile(target)}))
    with pytest.raises(DataError, match="which is not part of a model") as caught:
        nanogpt.read_checkpoint(tmp_path / "ckpt.pt")
    assert caught.value.code == "D046"
    assert not target.exists()


def test_a_damaged_checkpoint_of_nanogpt_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = write_torch_file(tmp_path / "ckpt.pt", nanogpt_state(random_weights(SMALL)))
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[: len(content) // 2], b"", b"PK", content[100:]]
    for position in rng.integers(0, len(content), 60):
        changed = bytearray(content)
        changed[position] ^= 255
        damaged.append(bytes(changed))
    for number, data in enumerate(damaged):
        file.write_bytes(data)
        error = error_of(file)
        assert error is None or (error.code in ("D046", "C080") and "\n" not in error.message), (number, error)


def error_of(file: Path) -> JaxgptError | None:
    try:
        nanogpt.read_checkpoint(file)
    except JaxgptError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0, (2**40, 2), (2, 1)), "larger than its storage"),
        ((0, (50_000_000,), (0,)), "larger than its storage"),
        ((-4, (2, 2), (2, 1)), "beyond its storage"),
        ((0, (2, 2), (2**40, 1)), "beyond its storage"),
        ((0, (2, 2), (-2, 1)), "beyond its storage"),
        ((3, (2, 2), (1, 1)), "beyond its storage"),
    ],
)
def test_a_tensor_cannot_reach_beyond_its_storage(arguments: Any, reason: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=reason):
        nanogpt._rebuild_tensor(np.zeros(4, np.float32), *arguments)
