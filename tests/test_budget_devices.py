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
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("v100", "V100"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("1080 ti", "GTX 1080 Ti"),
        ("Quadro RTX 8000", "RTX 8000"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA A10G", "A10G"),
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
    assert "NVIDIA" in device.source
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


@pytest.mark.parametrize("name", ["GTX 1070", "cpu", "", "RTX 5090 D", "RTX 2090", "TPU v4"])
def test_other_devices_are_not_matched_to_similar_ones(name: str) -> None:
    assert devices.lookup(name) is None
    assert devices.peak_flops(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("M1", "Apple"),
        ("Apple M3 Max", "Apple"),
        ("m4", "Apple"),
        ("MI210", "ROCm"),
        ("AMD Instinct MI250X", "ROCm"),
        ("mi300x", "ROCm"),
        ("RX 7900 XTX", "ROCm"),
        ("TPU v4", "TPUs"),
        ("Gaudi3", "Intel"),
    ],
)
def test_unsupported_devices_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        devices.find(name)
    assert caught.value.code == "C037"
    assert "tflops=" in caught.value.help


def test_custom_device_has_the_figures_given() -> None:
    device = devices.find("tflops=125, bandwidth=900,memory=16,watts=300")
    assert (device.tflops, device.bandwidth, device.memory, device.watts) == (125, 900, 16, 300)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("tflops=125", "bandwidth"),
        ("tflops=x,bandwidth=9,memory=9,watts=9", "tflops"),
        ("tflop=1", "tflop"),
        ("tflops=100,tflops=200,bandwidth=9,memory=9,watts=9", "tflops is given twice"),
        ("tflops=100,bandwidth=9,memory=9,watts=9,foo=1", "'foo' is not one of tflops, bandwidth, memory, watts"),
        ("tflops=100,bandwidth=9,memory=0.001,watts=9", "leaves no memory"),
        ("tflops=-1,bandwidth=9,memory=9,watts=9", "tflops"),
        ("tflops=nan,bandwidth=9,memory=9,watts=9", "tflops"),
    ],
)
def test_incomplete_custom_device_is_refused(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        devices.find(text)
    assert caught.value.code == "C037"


def test_power_limits_what_a_card_sustains() -> None:
    """Of 150 W (A10) and 72 W (L4); GeForce cards are below the limit."""
    assert devices.DEVICES["A10"].sustained_tflops < 0.7 * devices.DEVICES["A10"].tflops
    assert devices.DEVICES["L4"].sustained_tflops < 0.7 * devices.DEVICES["L4"].tflops
    assert devices.DEVICES["RTX 4090"].sustained_tflops == devices.DEVICES["RTX 4090"].tflops


def test_table_lists_every_device() -> None:
    text = devices.table()
    assert all(name in text for name in devices.DEVICES)
    assert max(map(len, text.splitlines()[:-1])) <= 80
