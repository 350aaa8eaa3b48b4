"""The device table: spellings, sources, and rates that follow from the vendor's own figures."""

import pytest

from jaxgpt.budget import devices
from jaxgpt.errors import ConfigError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("rtx4070", "RTX 4070"),
        ("RTX 4070", "RTX 4070"),
        ("NVIDIA GeForce RTX 4070", "RTX 4070"),
        ("4070", "RTX 4070"),
        ("rtx-4070-super", "RTX 4070 Super"),
        ("RTX4070TiSuper", "RTX 4070 Ti Super"),
        ("rtx 4070ti", "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("rtx 4060 ti 16 GB", "RTX 4060 Ti 16GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100pcie", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("A100", "A100 80GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("RTX PRO 6000 Blackwell Max-Q", "RTX PRO 6000 Max-Q"),
    ],
)
def test_device_is_found_under_any_usual_spelling(spelling: str, name: str) -> None:
    assert devices.find(spelling).name == name


@pytest.mark.parametrize("name", sorted(devices.DEVICES))
def test_every_device_finds_itself_and_states_its_source(name: str) -> None:
    device = devices.find(name)
    assert device.name == name
    assert device.source.startswith("NVIDIA")
    assert 4 < device.usable < device.memory


@pytest.mark.parametrize(
    ("name", "whitepaper"), [("RTX 3080", 59.5), ("RTX 3090", 71.0), ("RTX 4090", 165.2), ("RTX 5090", 209.5)]
)
def test_geforce_formula_gives_the_whitepapers_dense_rate(name: str, whitepaper: float) -> None:
    assert devices.DEVICES[name].tflops == pytest.approx(whitepaper, rel=0.005)


def test_unknown_device_is_refused_with_similar_names() -> None:
    with pytest.raises(ConfigError) as caught:
        devices.find("RTX 4071")
    assert caught.value.code == "C037"
    assert "RTX 4071" in caught.value.message
    assert "RTX 4070" in caught.value.help


@pytest.mark.parametrize("name", ["GTX 1080", "cpu", "", "RTX 5090 D", "RTX 2080 Ti", "TPU v4"])
def test_other_devices_are_not_matched_to_similar_ones(name: str) -> None:
    assert devices.lookup(name) is None
    assert devices.peak_flops(name) is None
