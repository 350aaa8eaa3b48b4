"""Compiler options to try on a GPU, one at a time, compared with the defaults (`jax.jit(compiler_options=...)`).

They are not set through XLA_FLAGS, where an unknown name ends the process; here it raises an exception. `train` uses
XLA's defaults until a measurement on the GPU in question shows a gain. Predictions are for the reference run
(12 layers, width 384, vocabulary 50,304) on an H100.
"""

from typing import NamedTuple


class Switch(NamedTuple):
    """Options that are set together, and the predicted change of the step time."""

    options: dict[str, str | int | bool]
    prediction: str


SWITCHES = {
    "command_buffer_while": Switch(
        {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE"},
        "-1 to -4 %: the loop over micro-batches is one graph, without a launch for each kernel",
    ),
    "command_buffer_unroll": Switch(
        {"xla_gpu_command_buffer_unroll_loops": True}, "-1 to -3 %: fewer launches between the micro-batches"
    ),
    "dynamic_slice_fusion": Switch(
        {"xla_gpu_enable_dynamic_slice_fusion": True}, "0 to -1 %: chunks of the loss are read in place"
    ),
    "dus_zero_init": Switch(
        {"xla_gpu_enable_dus_accumulator_zero_init_elimination": True}, "0 to -0.5 %: the scan's outputs are not zeroed"
    ),
    "exhaustive_tiling": Switch({"xla_gpu_exhaustive_tiling_search": True}, "0 to -3 %, and minutes more to compile"),
    "autotune_top_8": Switch({"xla_gpu_fusion_autotune_top_k_configs": 8}, "0 to -1 %"),
    "cudnn_gemm_fusion": Switch({"xla_gpu_cudnn_gemm_fusion_level": 2}, "-2 to +2 %: GELU in the product's epilogue"),
    "triton_multi_output": Switch(
        {"xla_gpu_unsupported_enable_triton_multi_output_fusion": True},
        "0 to -2 %: softmax and its gradient in one pass",
    ),
    "no_triton_gemm": Switch({"xla_gpu_enable_triton_gemm": False}, "-1 to +3 %: cuBLASLt alone"),
}
