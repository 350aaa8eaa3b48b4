"""Models in other formats: the written files compute what the model does, and come back byte for byte."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxgpt.config import Model
from jaxgpt.convert import huggingface, source
from jaxgpt.convert.weights import TensorReader, Weights, crop_context, trim_vocabulary
from jaxgpt.data import tokenizer
from jaxgpt.errors import ConfigError, DataError, JaxgptError
from jaxgpt.model.gpt import GPT
from jaxgpt.training.initial_weights import named_arrays
from jaxgpt.training.step import model_graphdef

SMALL = Model(n_layer=3, n_head=4, n_embd=64, block_size=48, vocab_size=300, dtype="float32", attention="xla")
MODELS = {
    "nanoGPT": SMALL,
    "OpenAI": dataclasses.replace(SMALL, bias=True, activation="gelu_tanh"),
    "gpt2, untied, other sizes": dataclasses.replace(SMALL, bias=True, tie_embeddings=False, n_inner=96, norm_eps=1e-3),
    "modern": dataclasses.replace(SMALL, architecture="modern"),
    "modern, grouped heads": dataclasses.replace(
        SMALL, architecture="modern", n_kv_head=2, head_dim=32, tie_embeddings=False, rope_theta=1e6, n_inner=200
    ),
    "modern, one key head": dataclasses.replace(SMALL, architecture="modern", n_kv_head=1, norm_eps=1e-5),
}


def random_weights(model: Model, seed: int = 0) -> Weights:
    """Weights none of which is zero or one, so that each of them matters."""
    rng = np.random.default_rng(seed)
    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: GPT(model, rngs=nnx.Rngs(0))))[1])
    shapes = {name: leaf.shape for name, leaf in named_arrays(params).items()}
    arrays = {name: rng.normal(1 if name.endswith("scale") else 0, 0.2, shape) for name, shape in shapes.items()}
    return Weights(model, {name: array.astype(np.float32) for name, array in arrays.items()})


def logits(weights: Weights, tokens_T: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Our model's logits [T, V]."""
    graphdef = model_graphdef(weights.model)
    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: GPT(weights.model, rngs=nnx.Rngs(0))))[1])
    leaves = [jnp.asarray(weights.arrays[name]) for name in named_arrays(params)]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens))(tokens_T[None])[0])


@pytest.fixture(scope="module")
def bpe() -> tokenizer.Tokenizer:
    return tokenizer.train(["to be or not to be, that is the question"] * 3, 300)


@pytest.mark.parametrize("name", MODELS)
def test_written_files_compute_the_models_logits(name: str, bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    weights = random_weights(MODELS[name])
    huggingface.write_model(tmp_path, weights, bpe, "float32")
    tokens_T = np.random.default_rng(1).integers(0, 300, 40)
    np.testing.assert_allclose(huggingface.logits(tmp_path, tokens_T), logits(weights, tokens_T), atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_comes_back_and_is_written_again_identically(
    name: str, dtype: str, bpe: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    huggingface.write_model(first, random_weights(MODELS[name]), bpe, dtype)
    weights = huggingface.read_weights(first)
    own = dataclasses.replace(MODELS[name], dtype="auto", attention="auto")
    assert weights.model == dataclasses.replace(own, n_inner=own.inner if own.architecture == "modern" else own.n_inner)
    if dtype == "float32":
        assert {n: a.tobytes() for n, a in weights.arrays.items()} == {
            n: a.tobytes() for n, a in random_weights(MODELS[name]).arrays.items()
        }
    huggingface.write_model(second, weights, bpe, dtype)
    assert sorted(file.name for file in first.iterdir()) == sorted(file.name for file in second.iterdir())
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_bfloat16_files_have_half_the_bytes_and_rounded_weights(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    huggingface.write_model(tmp_path, weights, bpe, "bfloat16")
    read = huggingface.read_weights(tmp_path).arrays
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(read[name], np.asarray(jnp.asarray(array, jnp.bfloat16), np.float32))
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * sum(a.size for a in weights.arrays.values()) + 10_000


def test_transformers_loads_the_files(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch and transformers are not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for number, model in enumerate(MODELS.values()):
        weights = random_weights(model)
        folder = tmp_path / str(number)
        folder.mkdir()
        huggingface.write_model(folder, weights, bpe, "float32")
        tokens_T = np.random.default_rng(1).integers(0, 300, 40)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            result = theirs(torch.tensor(tokens_T[None])).logits[0].numpy()
        np.testing.assert_allclose(result, logits(weights, tokens_T), atol=2e-4, rtol=2e-5)
        ids = transformers.AutoTokenizer.from_pretrained(folder)("to be<|endoftext|>").input_ids
        assert ids == bpe.encode("to be<|endoftext|>")


def test_config_json_has_both_spellings_of_the_rotary_base(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    huggingface.write_model(tmp_path, random_weights(MODELS["modern, grouped heads"]), bpe, "float32")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 1e6
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["split_special_tokens"] is True


def test_rows_without_a_token_are_trimmed() -> None:
    weights = random_weights(MODELS["modern, grouped heads"])
    trimmed = trim_vocabulary(weights, 280)
    assert trimmed.model.vocab_size == 280
    for name in ("tokens.embedding", "output"):
        np.testing.assert_array_equal(trimmed.arrays[name], weights.arrays[name][:280])


def test_a_shorter_context_keeps_the_first_positions() -> None:
    weights = random_weights(SMALL)
    cropped = crop_context(weights, 16)
    tokens_T = np.arange(16)
    np.testing.assert_allclose(logits(cropped, tokens_T), logits(weights, tokens_T), atol=1e-5)
    assert cropped.arrays["positions.embedding"].shape == (16, 64)


def test_gpt2_cannot_have_heads_that_do_not_fill_the_width(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    model = dataclasses.replace(SMALL, head_dim=32)
    with pytest.raises(ConfigError, match="4 heads of 32 in a width of 64, which has no counterpart") as caught:
        huggingface.write_model(tmp_path, random_weights(model), bpe, "float32")
    assert caught.value.code == "C080"


# Folders and files that are refused


def written(folder: Path, bpe: tokenizer.Tokenizer, name: str) -> Path:
    huggingface.write_model(folder, random_weights(MODELS[name]), bpe, "float32")
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "code", "message"),
    [
        ("modern", {"model_type": "llama"}, "C080", "model_type = llama"),
        ("modern", {"attention_bias": True}, "C080", "attention_bias = True"),
        ("modern", {"use_sliding_window": True}, "C080", "use_sliding_window = True"),
        ("modern", {"hidden_act": "gelu"}, "C080", "hidden_act = gelu"),
        ("modern", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "C080", "rope_type = yarn"),
        ("modern", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "C080", "rope_type = linear"),
        ("modern", {"num_hidden_layers": 2}, "C080", "model.layers.2"),
        ("modern", {"num_hidden_layers": 4}, "D046", "has no tensor model.layers.3"),
        ("modern", {"hidden_size": 128}, "D046", "has the shape"),
        ("modern", {"hidden_size": "wide"}, "D046", "config.json"),
        ("modern", {"num_attention_heads": 0}, "D046", "config.json"),
        ("OpenAI", {"activation_function": "relu"}, "C080", "activation_function = relu"),
        ("OpenAI", {"scale_attn_by_inverse_layer_idx": True}, "C080", "scale_attn_by_inverse_layer_idx"),
        ("OpenAI", {"n_layer": 2}, "C080", "h.2."),
        ("OpenAI", {"vocab_size": 301}, "D046", r"has the shape \[300, 64\]"),
    ],
)
def test_what_does_not_fit_exactly_is_refused_by_name(
    name: str, changes: dict[str, Any], code: str, message: str, bpe: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    change_config(written(tmp_path, bpe, name), **changes)
    with pytest.raises(JaxgptError, match=message) as caught:
        source.read_weights(str(tmp_path))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff\xfe"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("model.safetensors", None),
        ("config.json", None),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../../etc/passwd"}}'),
        ("model.safetensors.index.json", b'{"weight_map": 3}'),
    ],
)
def test_a_damaged_folder_is_refused_in_a_sentence(
    name: str, content: bytes | None, bpe: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    file = written(tmp_path, bpe, "modern") / name
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        source.read_weights(str(tmp_path))
    assert caught.value.code == "D046"


def test_a_folder_with_several_files_of_weights(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    tensors = load_file(written(tmp_path, bpe, "modern") / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    read = source.read_weights(str(tmp_path)).arrays
    expected = random_weights(MODELS["modern"]).arrays
    assert all(np.array_equal(read[name], expected[name]) for name in expected)


def test_the_names_in_openais_own_files(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    file = written(tmp_path, bpe, "OpenAI") / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors |= {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 48, 48), np.float32)) for i in range(3)}
    save_file(tensors, file)
    read = source.read_weights(str(tmp_path)).arrays
    expected = random_weights(MODELS["OpenAI"]).arrays
    assert all(np.array_equal(read[name], expected[name]) for name in expected)


def test_there_are_no_such_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there are no weights 'gpt-2'") as caught:
        source.read_weights("gpt-2")
    assert caught.value.code == "C081"
    assert "did you mean 'gpt2'?" in caught.value.help


def test_a_reader_gives_each_tensor_once() -> None:
    reader = TensorReader("file", {"a": np.ones(2), "b": np.ones(3)})
    assert reader.take("a", 2).dtype == np.float32
    with pytest.raises(ConfigError, match="the tensor b, which has no counterpart"):
        reader.check_empty()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config.json", {"rope_parameters": [1]}),
        ("config.json", {"rope_scaling": "linear", "rope_parameters": None}),
        ("config.json", {"rope_parameters": None, "rope_theta": 10**400}),
        ("model.safetensors.index.json", {"weight_map": {"a": 5}}),
        ("model.safetensors.index.json", {"weight_map": ["x"]}),
    ],
)
def test_values_of_a_wrong_type_are_one_sentence(
    name: str, value: dict[str, Any], bpe: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    written(tmp_path, bpe, "modern")
    if name == "config.json":
        change_config(tmp_path, **value)
    else:
        (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(DataError) as caught:
        source.read_weights(str(tmp_path))
    assert caught.value.code == "D046"


def test_integers_are_not_weights(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    file = written(tmp_path, bpe, "modern") / "model.safetensors"
    save_file({name: tensor.astype(np.int32) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(DataError, match="does not hold floating-point numbers"):
        source.read_weights(str(tmp_path))


@pytest.mark.parametrize("name", ["out/ckpt.pt", "out/model", "nope/x.safetensors"])
def test_a_mistyped_path_does_not_go_to_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(source.hub, "fetch_model", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError) as caught:
        source.read_weights(name)
    assert caught.value.code == "C081"


def test_bfloat16_weights_are_read_without_jax(bpe: tokenizer.Tokenizer, tmp_path: Path) -> None:
    huggingface.write_model(tmp_path, random_weights(MODELS["modern"]), bpe, "bfloat16")
    code = "import sys; from jaxgpt.convert.source import read_weights as read; "
    code += "print(read(sys.argv[1]).model.n_embd, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "64 False\n"
