"""`bench/hlo.py` parses a compiled program into kernels; `bench/program.py` summarizes a program for a GPU."""

import importlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest
from helpers.h100_memory import H100_MEMORY

from jaxgpt import errors
from jaxgpt.budget import devices
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError

BENCH = Path(__file__).parents[1] / "bench"

# As XLA writes them for a GPU: a loop of four turns around a call of cuBLAS, a fusion that takes a slice and one that
# writes a row in place, and cuDNN's attention with its workspace.
MODULE = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[8,16]{1,0}}

%taken (param_0: bf16[4,32,16], param_1: s32[]) -> bf16[32,16] {
  %param_0 = bf16[4,32,16]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = bf16[1,32,16]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,32,16}
  ROOT %flat = bf16[32,16]{1,0} bitcast(%cut)
}

%stored (param_0.1: f32[4,8], param_1.1: f32[1,8], param_2.1: s32[]) -> f32[4,8] {
  %param_0.1 = f32[4,8]{1,0} parameter(0)
  %param_1.1 = f32[1,8]{1,0} parameter(1)
  %param_2.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %put = f32[4,8]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2.1, %zero.1)
}

%body (arg: (s32[], bf16[4,32,16], bf16[64,32], f32[4,8], f32[1,8])) -> (s32[], bf16[4,32,16], bf16[64,32], f32[4,8]) {
  %arg = (s32[], bf16[4,32,16]{2,1,0}, bf16[64,32]{1,0}, f32[4,8]{1,0}, f32[1,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = bf16[4,32,16]{2,1,0} get-tuple-element(%arg), index=1
  %x = bf16[64,32]{1,0} get-tuple-element(%arg), index=2
  %rows = f32[4,8]{1,0} get-tuple-element(%arg), index=3
  %row = f32[1,8]{1,0} get-tuple-element(%arg), index=4
  %part = bf16[32,16]{1,0} fusion(%w, %i), kind=kLoop, calls=%taken, metadata={op_name="jit(f)/slice"}
  %y = (bf16[64,16]{1,0}, s8[4096]{0}) custom-call(%x, %part), custom_call_target="__cublas$gemm", backend_config=\
{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %next = f32[4,8]{1,0} fusion(%rows, %row, %i), kind=kLoop, calls=%stored
  ROOT %out = (s32[], bf16[4,32,16]{2,1,0}, bf16[64,32]{1,0}, f32[4,8]{1,0}) tuple(%i, %w, %x, %next)
}

%cond (arg.1: (s32[])) -> pred[] {
  %arg.1 = (s32[]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %start = (s32[]) tuple(%p)
  %loop = (s32[]) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"4"},"x":{}}
  %heads = (bf16[2,8,4]{2,1,0}, u8[0]{0}, s8[512]{0}) custom-call(%p, %p), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %copied = f32[8,16]{1,0} copy(%p)
}
"""


@pytest.fixture(autouse=True, scope="module")
def benches() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))
    for name in ("common", "sides", "hlo", "program"):
        sys.modules.pop(name, None)


def bench(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_kernels_count_the_bytes_they_touch() -> None:
    kernels = {kernel.name: kernel for kernel in bench("hlo").kernels(MODULE)}
    assert list(kernels) == ["part", "y", "next", "heads", "copied"]
    assert [kernel.count for kernel in kernels.values()] == [4, 4, 4, 1, 1]
    assert [kernel.kind for kernel in kernels.values()] == ["pass", "product", "pass", "attention", "pass"]
    assert kernels["part"].bytes == 2 * (32 * 16) * 2 + 4  # the slice read and written, and the number that says which
    assert (kernels["part"].source, kernels["y"].source) == ("jit(f)/slice", "")
    assert kernels["y"].flops == 2 * 64 * 16 * 32
    assert kernels["y"].bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)  # without the workspace
    assert kernels["next"].bytes == 4 * (8 + 8) + 4
    assert kernels["heads"].bytes == 2 * 8 * 16 * 4 + 2 * 8 * 4 * 2
    assert kernels["copied"].bytes == 2 * 8 * 16 * 4


def test_operations_of_a_compiled_loop() -> None:
    def chained(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((64, 48), jnp.float32), jax.ShapeDtypeStruct((7, 48, 48), jnp.float32)
    hlo = bench("hlo")
    kernels = hlo.kernels(jax.jit(chained).lower(*shapes).compile().as_text())
    assert hlo.total(kernels, lambda kernel: kernel.flops) == 7 * 2 * 64 * 48 * 48
    assert {kernel.count for kernel in kernels if kernel.flops} == {7}
    traffic = hlo.total([k for k in kernels if k.flops], lambda kernel: kernel.bytes)
    assert traffic >= 7 * 4 * (2 * 64 * 48 + 48 * 48)


def test_an_unknown_trip_count_is_refused() -> None:
    with pytest.raises(ValueError, match="trip count of the loop loop"):
        bench("hlo").kernels(MODULE.replace("known_trip_count", "unknown"))


def test_sizes_of_arrays_and_tuples() -> None:
    hlo = bench("hlo")
    assert hlo.size("(bf16[3,5]{1,0}, f32[]{:T(128)}, pred[8]{0}, token[])") == 30 + 4 + 8
    assert (hlo.dimensions("f32[2,1,7]{2,1,0}"), hlo.dimensions("s32[]")) == ([2, 1, 7], [])


def test_a_kernel_is_bound_by_traffic_or_products() -> None:
    program, hlo, device = bench("program"), bench("hlo"), devices.find("H200")
    kernel = hlo.Kernel("k", "product", 1, 48_000_000, 0, "", "")
    assert program.bound(kernel, device) == pytest.approx(1e-5)
    busy = kernel._replace(flops=int(989.4e12 * 2e-5))
    assert program.bound(busy, device) == pytest.approx(2e-5)
    assert program.likely(busy, device) == pytest.approx(2e-5 / 0.75 + 2e-6)
    assert program.summarize([busy._replace(count=3), kernel], device)["bound_ms"] == pytest.approx(0.07)


def test_kernels_are_grouped_by_their_results() -> None:
    program, hlo, config = bench("program"), bench("hlo"), load_config("fineweb40m")

    def part(kind: str, shape: str, count: int = 32) -> str:
        name: str = program.kernel_group(hlo.Kernel("k", kind, count, 0, 0, shape, ""), config)
        return name

    assert part("product", "bf16[4096,50304]{1,0}") == "head, products"
    assert part("pass", "f32[50304,384]{1,0}") == "loss and embedding, passes"
    assert part("pass", "bf16[16384,1536]{1,0}") == "blocks, passes"
    assert part("product", "bf16[16384,1536]{1,0}") == "blocks, products"
    assert part("attention", "bf16[16,12,1024,32]{3,1,2,0}") == "attention"
    assert part("pass", "f32[50304,384]{1,0}", count=1) == "once per step"
    assert part("product", "bf16[16384,1536]{1,0}", count=1) == "blocks, products"  # of one micro-batch, without a loop
    inside = hlo.Kernel("k", "pass", 1, 0, 0, "bf16[16384,1536]{1,0}", "jit(train_step)/closed_call/jvp()/mul")
    assert program.kernel_group(inside, config) == "blocks, passes"


def test_attention_has_the_planners_operations() -> None:
    program, hlo, config = bench("program"), bench("hlo"), load_config("fineweb40m")
    layer = [hlo.Kernel(name, "attention", 32, 0, 0, "", source) for name, source in (("a", "fwd"), ("b", "x_bwd"))]
    forward, backward = (kernel.flops for kernel in program.with_attention_flops(layer, config))
    assert 2 * backward == 5 * forward
    m, rows = config.model, config.data.micro_batch
    product = 2 * rows * m.n_head * m.head_size * m.block_size**2 // 2  # the causal half of one T x T product
    assert forward == pytest.approx(2 * product)


def test_an_unknown_gpu_and_a_missing_plugin_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    program = bench("program")
    with pytest.raises(ConfigError, match="C037"):
        program.target_description(devices.find("T4"))

    def absent(_: str) -> str:
        raise program.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(program.importlib.metadata, "version", absent)
    with pytest.raises(ConfigError, match=r"C042[\s\S]*cuda13"):
        program.target_description(devices.find("H200"))
    assert errors.run(program.main, ["--gpu", "H200"]) == 2


needs_plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="JAX's CUDA plugin is not installed: pip install '.[cuda13]'",
)


@needs_plugin
def test_the_program_for_a_gpu_follows_the_design() -> None:
    """The reference model with two layers and otherwise its real sizes."""
    program = bench("program")
    config = load_config("fineweb40m").replace({"model": {"n_layer": 2}})
    compiled = program.compile_for(program.Variant("", config), devices.find("H200"))
    analysis = program.analyze(compiled, config, devices.find("H200"))
    m, tokens = config.model, config.data.micro_batch * config.data.accum * config.model.block_size
    chunks, logits = tokens // m.loss_chunk, m.loss_chunk * m.vocab_size
    kernels = [bench("hlo").Kernel(*[k[field] for field in bench("hlo").Kernel._fields]) for k in analysis["kernels"]]
    assert [k.count for k in kernels if k.kind == "attention"] == [config.data.accum] * 2 * m.n_layer
    per_chunk = [k for k in kernels if k.count == chunks and k.bytes > logits]
    assert len([k for k in per_chunk if k.kind == "product"]) == 3
    passes = [k.bytes / logits for k in per_chunk if k.kind == "pass"]
    assert sorted(round(each) for each in passes) == [2, 4]  # read once for the sums; read and written for the slope
    wide = config.data.micro_batch * m.block_size * m.n_embd
    in_micro_batch = [k for k in kernels if k.count == config.data.accum]
    made = [re.findall(r"f32\[([\d,]*)\]", k.shape) for k in in_micro_batch]
    sizes = {math.prod(map(int, axes.split(","))) for shapes in made for axes in shapes if axes}
    assert wide not in sizes  # no stream in float32, such as a norm's slope
    norms = [
        k
        for k in kernels
        if k.kind == "pass" and k.source.endswith("/reduce") and k.bytes > wide and k in in_micro_batch
    ]
    assert len(norms) == 2 * m.n_layer + 1  # one kernel makes a norm's input and its sums
    assert analysis["temporary_bytes"] < 2.5e9


@needs_plugin
@pytest.mark.parametrize("remat", ["none", "attention", "blocks"])
def test_recorded_memory_matches_xlas_count(remat: str) -> None:
    """`test_budget_memory` compares the plan with these records; a change of the step must update them."""
    config = load_config("fineweb40m").replace({"model": {"remat": remat}})
    line = next(line.split() for line in H100_MEMORY.splitlines() if line.split()[:2] == ["fineweb40m", "16"])
    memory = bench("program").compile_for(bench("sides").Variant("", config), devices.find("H100")).memory_analysis()
    counted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    recorded = dict(zip(("none", "attention", "blocks"), map(float, line[2:]), strict=True))
    assert counted / 1e9 == pytest.approx(recorded[remat], rel=0.01)


@needs_plugin
def test_the_mask_of_documents_is_made_once() -> None:
    """A micro-batch of `fineweb40m_modern` with two layers: both read one mask, in each pass."""
    program = bench("program")
    changes = {"model": {"n_layer": 2}, "data": {"block_cross_document_attention": True}}
    config = load_config("fineweb40m_modern").replace(changes)
    compiled = program.compile_for(program.Variant("", config), devices.find("H100"))
    kernels = program.analyze(compiled, config, devices.find("H100"))["kernels"]
    mask_bytes = 2 * config.data.micro_batch * config.model.block_size**2
    masks = [kernel["count"] for kernel in kernels if "_where" in kernel["source"] and kernel["bytes"] > mask_bytes]
    assert masks == [config.data.accum]
    attention = [kernel["bytes"] for kernel in kernels if kernel["kind"] == "attention"]
    assert len(attention) == 2 * config.model.n_layer
    assert min(attention) > mask_bytes
