"""`data.block_cross_document_attention`: each document of a window is predicted as if it were alone."""

import dataclasses
import functools
import itertools
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.training import (
    Changes,
    Crash,
    after_step,
    arguments,
    crash,
    leaf_bytes,
    logged_losses,
    records,
    run_folder,
    saved_state,
    tiny_config,
)

from jaxgpt import evaluate, train
from jaxgpt.config import Config, Model
from jaxgpt.data import dataset as datasets
from jaxgpt.errors import ConfigError
from jaxgpt.model import gpt
from jaxgpt.model.attention import attend
from jaxgpt.model.ops.causal_attention import causal_attention
from jaxgpt.training import batches, step

pytestmark = pytest.mark.usefixtures("fast_compilation")

EOT = 9
GPT2 = Model(n_layer=1, n_head=4, n_embd=32, block_size=15, vocab_size=24, dtype="float32", attention="xla")
MODERN = dataclasses.replace(GPT2, architecture="modern", n_kv_head=2, tie_embeddings=False)
both_architectures = pytest.mark.parametrize("model", [GPT2, MODERN], ids=["gpt2", "modern"])
# The end of a document, an empty one, a whole one and the beginning of one: 15 inputs and the last target.
WINDOW = np.array([[3, 1, 4, EOT, EOT, 5, 2, 6, 5, 3, 7, EOT, 8, 7, 2, 3]])
BOUNDARIES = [0, 3, 4, 11, 15]


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def plain_attention(q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array, documents: Any) -> jax.Array:
    group = q_BxTxHxC.shape[2] // k_BxTxKxC.shape[2]
    k, v = (jnp.repeat(array, group, axis=2) for array in (k_BxTxKxC, v_BxTxKxC))
    scores = jnp.einsum("bthc,bshc->bhts", q_BxTxHxC, k) / math.sqrt(q_BxTxHxC.shape[-1])
    numbers = range(q_BxTxHxC.shape[1])
    rows = np.asarray(documents)
    seen = np.array([[[[s <= t and row[s] == row[t] for s in numbers] for t in numbers]] for row in rows])
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v)


@partial(jax.jit, static_argnums=0)
def with_gradient(function: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    value, pull = jax.vjp(function, *arrays)
    return value, *pull(jnp.cos(value))


@functools.cache
def network(model: Model) -> tuple[Any, step.Params]:
    """The model's structure, and parameters with matrices so large that attention is far from uniform."""
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(gpt.GPT(model, rngs=nnx.Rngs(0)))))()
    return step.model_graphdef(model), jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim >= 2 else leaf, params)


def loss_and_gradient(model: Model, tokens: np.ndarray, eot: int | None) -> tuple[Any, step.Params]:
    """The sum of the losses of the targets in windows [B, T + 1], and its gradient."""
    graphdef, params = network(model)
    function = partial(step.loss_fn, graphdef=graphdef, model=model, eot=eot)
    loss, grads = jax.jit(jax.value_and_grad(function))(params, tokens, None)
    return jax.tree.map(lambda leaf: np.asarray(leaf) * tokens[:, 1:].size, (loss, grads))


def assert_close(tree: Any, other: Any, tolerance: float = 1e-4) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), tree, other)


def test_end_of_text_starts_a_document() -> None:
    documents = step.document_numbers(jnp.array([[5, 9, 1, 9, 9, 2], [9, 1, 1, 1, 1, 9]]), EOT)
    np.testing.assert_array_equal(documents, [[0, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 2]])


@pytest.mark.parametrize(("time", "kv_heads"), [(1, 4), (5, 2), (11, 1)])
def test_attention_in_documents_matches_the_definition(time: int, kv_heads: int) -> None:
    arrays = [normal(i, 3, time, heads, 8) for i, heads in enumerate((4, kv_heads, kv_heads))]
    documents = jnp.cumsum(jax.random.bernoulli(jax.random.key(7), 0.3, (3, time)), axis=1)
    exact = with_gradient(partial(plain_attention, documents=documents), *arrays)
    chunked = with_gradient(partial(causal_attention, documents_BxT=documents), *arrays)
    assert_close(chunked, exact, 1e-5)


def test_attention_with_dropout_stays_in_documents() -> None:
    model = dataclasses.replace(MODERN, attention_dropout=1e-7)  # nothing of so few numbers is dropped
    q, k, v = (normal(i, 2, 7, heads, 8) for i, heads in enumerate((4, 2, 2)))
    documents = jnp.array([[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])
    rngs = jax.random.split(jax.random.key(9), 2)
    dropped = jax.jit(partial(attend, config=model))(q, k, v, rngs_B=rngs, documents_BxT=documents)
    assert_close(dropped, plain_attention(q, k, v, documents), 1e-5)


def test_logits_of_each_document_are_those_of_it_alone() -> None:
    graphdef, params = network(dataclasses.replace(MODERN, n_layer=2))

    @partial(jax.jit, static_argnums=1)
    def logits(tokens: jax.Array, eot: int | None) -> jax.Array:
        model = nnx.merge(graphdef, params)
        return model.logits(model.hidden(tokens, documents_BxT=step.document_numbers(tokens, eot))[0])

    packed = logits(jnp.asarray(WINDOW), EOT)
    for start, end in itertools.pairwise(BOUNDARIES):
        np.testing.assert_allclose(packed[:, start:end], logits(jnp.asarray(WINDOW[:, start:end]), None), atol=1e-5)


def test_gradient_is_the_sum_over_documents_alone() -> None:
    """Each document's targets include the end-of-text token after it."""
    model = dataclasses.replace(MODERN, remat="blocks")
    documents = [WINDOW[:, start : end + 1] for start, end in itertools.pairwise(BOUNDARIES)]
    alone = [loss_and_gradient(model, tokens, None) for tokens in documents]
    total = jax.tree.map(lambda *leaves: sum(leaves), *alone)
    assert_close(loss_and_gradient(model, WINDOW, EOT), total)
    assert abs(loss_and_gradient(model, WINDOW, None)[0] - total[0]) > 0.1


@both_architectures
def test_step_matches_plain_masked_attention(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = loss_and_gradient(model, WINDOW, EOT)
    evaluated = evaluated_losses(model, EOT)

    def attend_plainly(q: Any, k: Any, v: Any, *_: Any) -> jax.Array:
        return plain_attention(q, k, v, np.cumsum(WINDOW[:, :-1] == EOT, axis=1))

    monkeypatch.setattr(gpt, "attend", attend_plainly)
    expected = loss_and_gradient(model, WINDOW, None)
    assert_close(actual, expected)
    assert_close(evaluated, expected[0][None, None] / model.block_size, 1e-5)


def evaluated_losses(model: Model, eot: int | None) -> jax.Array:
    graphdef, params = network(model)
    evaluate_step = jax.jit(partial(step.eval_step, config=Config(model=model), graphdef=graphdef, eot=eot))
    return evaluate_step(params, jnp.asarray(WINDOW)[None])


@both_architectures
def test_window_without_end_of_text_is_unchanged(model: Model) -> None:
    unused = 23
    assert not np.isin(WINDOW, unused).any()
    assert_close(loss_and_gradient(model, WINDOW, unused), loss_and_gradient(model, WINDOW, None), 1e-6)


def cudnn_calls(block_size: int) -> list[tuple[str, str]]:
    """The name and the operands' types of each call of cuDNN in the gradient lowered for CUDA."""
    model = dataclasses.replace(MODERN, dtype="bfloat16", attention="cudnn", block_size=block_size)
    graphdef, params = network(model)
    function = partial(step.loss_fn, graphdef=graphdef, model=model, eot=EOT)
    tokens = jax.ShapeDtypeStruct((3, block_size + 1), np.uint16)
    text = jax.jit(jax.grad(function)).trace(params, tokens, None).lower(lowering_platforms=("cuda",)).as_text()
    return re.findall(r"custom_call @__cudnn\$fmha(\w+)\(.*?\) .*?: \((.*?)\)", text)


def test_cudnn_gets_the_mask_as_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    stablehlo = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{stablehlo}.check_cudnn_version", lambda: 91000)  # otherwise it asks the library
    calls = cudnn_calls(block_size=16)
    assert [name for name, _ in calls] == ["ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward"]
    assert all("tensor<3x1x16x16xbf16>" in operands for _, operands in calls)
    assert not cudnn_calls(block_size=15)


# --- runs ------------------------------------------------------------------------------------------------------------

IN_DOCUMENTS: Changes = {"data.block_cross_document_attention": True}


@pytest.fixture
def documents(workspace: Path) -> Path:
    """A workspace whose tokenizer has an end-of-text token, one token in 64."""
    file = workspace / "data" / "tokenizer.json"
    file.write_text(file.read_text().replace('"A"', '"<|endoftext|>"'))
    return workspace


def test_crashed_run_in_documents_is_bitwise_identical(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        after_step(patch, 9, crash)
        with pytest.raises(Crash):
            train.train(tiny_config(documents, IN_DOCUMENTS))
    train.train(tiny_config(documents, IN_DOCUMENTS))
    assert [record["step"] for record in records(run_folder(documents), "start")] == [0, 8]
    alone = tiny_config(documents, IN_DOCUMENTS | {"run.name": "alone"})
    train.train(alone)
    assert logged_losses(run_folder(documents)) == logged_losses(run_folder(documents, "alone"))
    assert leaf_bytes(saved_state(tiny_config(documents, IN_DOCUMENTS))) == leaf_bytes(saved_state(alone))
    train.train(tiny_config(documents, {"run.name": "across"}))
    assert logged_losses(run_folder(documents)) != logged_losses(run_folder(documents, "across"))


def test_evaluation_is_in_documents(
    documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train.train(tiny_config(documents, IN_DOCUMENTS))
    in_documents = f"{records(run_folder(documents), 'eval')[-1]['val_loss']:.4f}"
    evaluate.main(["a"])
    assert in_documents in capsys.readouterr().out
    monkeypatch.setattr(batches, "document_token", lambda *_: None)
    evaluate.main(["a"])
    assert in_documents not in capsys.readouterr().out


def test_tokens_without_end_of_text_are_refused(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="no end-of-text token") as caught:
        train.main(arguments(workspace, IN_DOCUMENTS))
    assert caught.value.code == "C072"
    assert not run_folder(workspace).path.exists()


def test_manifest_decides_whether_there_is_an_end_of_text(duplicates_folder: Path) -> None:
    config = Config().replace({"data": {"block_cross_document_attention": True}})
    dataset = datasets.open_folder(duplicates_folder)
    assert batches.document_token(config, dataset) == 50256
    assert batches.document_token(Config(), dataset) is None
    assert dataset.manifest
    without = dataclasses.replace(dataset, manifest=dataclasses.replace(dataset.manifest, eot_position="none"))
    with pytest.raises(ConfigError, match="no end-of-text token"):
        batches.document_token(config, without)
