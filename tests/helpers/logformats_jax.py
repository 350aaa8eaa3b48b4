"""Logs of torchtitan, MaxText and Levanter, and nanochat's current header, made up line by line."""

from helpers.logsamples import loss, nanochat

TITAN_HEAD = """[rank0]:[titan] 2025-04-01 11:59:00,000 - root - INFO - Running with args: {'model': {'name': 'a'}, \
'optimizer': {'name': 'AdamW', 'lr': 0.0008, 'weight_decay': 0.1}, 'lr_scheduler': {'warmup_steps': 200, \
'decay_ratio': 0.2, 'decay_type': 'linear', 'min_lr_factor': 0.1}, 'training': {'dataset': 'c4'}}
[rank0]:[titan] 2025-04-01 11:59:01,000 - root - INFO - Building 2-D device mesh with ['dp_shard', 'tp'], [4, 2]
[rank0]:[titan] 2025-04-01 11:59:02,000 - root - INFO - CUDA capacity: NVIDIA H100 80GB HBM3 with 79.10GiB memory
[rank0]:[titan] 2025-04-01 11:59:03,000 - root - INFO - Model llama3 debug size: 124,439,808 total parameters
[rank0]:[titan] 2025-04-01 11:59:04,000 - root - INFO - Trainer is initialized with local batch size 16, \
global batch size 128, gradient accumulation steps 2, sequence length 4096, total steps 1000 (warmup 200).
"""


def torchtitan(head: str = TITAN_HEAD, steps: int = 400) -> str:
    """A line per ten steps of 0.5 s; an evaluation after every hundredth takes 20 s."""
    lines, clock = [], 0.0
    for step in (1, *range(10, steps + 1, 10)):
        clock = step * 0.5 + step // 100 * 20.0 - (20.0 if step % 100 == 0 else 0.0)
        prefix = f"[rank0]:[titan] 2025-04-01 12:{clock // 60:02.0f}:{clock % 60:06.3f}".replace(".", ",")
        speed = "tps: 131,072  tflops: 410.10  mfu: 41.40%"
        lines.append(
            f"{prefix} - root - INFO - step: {step:2}  loss: {loss(step):7.4f}  grad_norm:  0.7000  "
            f"memory: 30.01GiB(37.90%)  {speed}"
        )
        if step % 100 == 0:
            clock += 20.0
            prefix = f"[rank0]:[titan] 2025-04-01 12:{clock // 60:02.0f}:{clock % 60:06.3f}".replace(".", ",")
            lines.append(
                f"{prefix} - root - INFO - validate step: {step:2}  loss: {loss(step) + 0.02:7.4f}  memory: 30.01GiB"
            )
    return head + "\n".join(lines) + "\n"


def maxtext(steps: int = 300) -> str:
    lines = [
        "I0401 12:00:00.000000 1 pyconfig.py:465] Config param adam_weight_decay: 0.1",
        "I0401 12:00:00.000000 1 pyconfig.py:465] Config param learning_rate: 3e-05",
        "I0401 12:00:00.000000 1 pyconfig.py:465] Config param steps: 1000",
        "I0401 12:00:00.000000 1 pyconfig.py:465] Config param warmup_steps_fraction: 0.1",
        "I0401 12:00:00.000000 1 pyconfig.py:465] Config param opt_type: adamw",
        "number parameters: 0.124 billion",
    ]
    for step in range(steps):
        if step % 100 == 99:  # before the line of its step, which is delayed
            lines.append(f"eval metrics after step: {step}, loss={loss(step) + 0.02:.3f}, total_weights=1048576.0")
        seconds = 25.1 if step == 0 else 1.341
        lines.append(
            f"completed step: {step}, seconds: {seconds:.3f}, TFLOP/s/device: 257.929, Tokens/s/device: 36653.244, "
            f"total_weights: 196608, loss: {loss(step):.3f}"
        )
    return "\n".join(lines) + "\n"


def levanter(steps: int = 1000) -> str:
    """A line per minute; the shorter bars are those of evaluations."""
    lines = []
    for done in range(1, steps, 30):
        shown = f"{done}it" if done < 1000 else f"{done / 1000:.3g}kit"
        head = "2025-04-01T12:00:00 - 0 - levanter.callbacks - _metrics.py:123 - INFO :: "
        progress = f"Progress on:train {shown}/10.0kit rate:2.0it/s remaining:1:19:01 elapsed:00:08:00"
        lines.append(f"{head}{progress} postfix:loss={loss(done - 1):.3f}")
        if done % 300 == 1 and done > 1:
            lines.append(
                f"{head}Progress on:eval 12.0it/64.0it rate:4.0it/s remaining:00:13 elapsed:00:03 postfix:loss=9.1"
            )
            lines.append(f"{head}validation loss: {loss(done) + 0.02:.3f}")
    return "\n".join(lines) + "\n"


NANOCHAT_HEAD = """GPU: NVIDIA H100 80GB HBM3 | Peak FLOPS (BF16): 9.89e+14
COMPUTE_DTYPE: torch.bfloat16 (auto)
Vocab size: 32,768
Model config:
{
  "sequence_len": 2048,
  "vocab_size": 32768,
  "n_layer": 12,
  "n_head": 6,
  "n_embd": 768,
  "window_pattern": "SSSL"
}
Parameter counts:
wte                     : 25,165,824
transformer_matrices    : 84,935,808
total                   : 286,262,424
Estimated FLOPs per token: 7.589888e+08
Auto-computed optimal batch size: 524,288 tokens
Scaling weight decay from 0.280000 to 0.140000 for depth 12
Calculated number of iterations from target data:param ratio: 400
Total number of training tokens: 209,715,200
Tokens / micro-batch / rank: 32 x 2048 = 65,536
Total batch size 524,288 => gradient accumulation steps: 1
"""


def nanochat_current() -> str:
    body = nanochat().splitlines()[3:]
    return NANOCHAT_HEAD + "\n".join(line.replace(" | total time", " | eta: 3.2m | total time") for line in body) + "\n"
