"""How `auto` becomes a compute type and an attention implementation."""

from typing import Any

import pytest

from jaxgpt.config import Model
from jaxgpt.errors import ConfigError
from jaxgpt.model import backend


def test_gpus_before_ampere_have_no_cudnn_attention() -> None:
    assert backend.resolve_auto(Model(), "gpu", "7.5").attention == "xla"
    assert backend.resolve_auto(Model(), "gpu", "8.0").attention == "cudnn"
    with pytest.raises(ConfigError, match="compute capability 8"):
        backend.resolve_auto(Model(attention="cudnn"), "gpu", "7.5")


def resolved(platform: str, **changes: Any) -> tuple[str, str]:
    settings = backend.resolve_auto(Model(**changes), platform)
    return settings.dtype, settings.attention


def test_auto_on_gpu_and_cpu() -> None:
    assert resolved("gpu") == ("bfloat16", "cudnn")
    assert resolved("cpu") == ("float32", "xla")
    assert resolved("gpu", dtype="float32") == ("float32", "xla")
    assert resolved("gpu", attention="xla") == ("bfloat16", "xla")
    assert resolved("cpu", dtype="bfloat16") == ("bfloat16", "xla")
    assert resolved("gpu", head_dim=136) == resolved("gpu", head_dim=20) == ("bfloat16", "xla")
    assert resolved("gpu", head_dim=128, attention="cudnn") == ("bfloat16", "cudnn")


@pytest.mark.parametrize(
    ("platform", "changes", "reason"),
    [
        ("cpu", {}, "the device is a cpu"),
        ("gpu", {"dtype": "float32"}, "bfloat16, not float32"),
        ("gpu", {"head_dim": 20}, "head size 20"),
        ("gpu", {"head_dim": 136}, "head size 136"),
    ],
)
def test_cudnn_is_refused_with_the_reason(platform: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        backend.resolve_auto(Model(attention="cudnn", **changes), platform)
    assert "C023" in str(caught.value)
