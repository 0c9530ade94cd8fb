"""What models cost, against published figures."""

from __future__ import annotations

import pytest

from dsv3rt.config import ModelConfig
from dsv3rt.testing import PRESETS
from dsv3rt.weights.sizes import Sizes


@pytest.mark.parametrize(
    ("name", "total", "active", "cache"),
    [
        ("v3", 671e9, 37e9, 70272),
        ("moonlight-16b-a3b", 16e9, 2.6e9, 31104),
        ("v2-lite", 15.7e9, 2.4e9, 31104),
        ("glm-4.7-flash", 30e9, 3.6e9, 54144),
        ("kimi-k2", 1027e9, 32e9, 70272),
    ],
)
def test_published_figures(name: str, total: float, active: float, cache: int) -> None:
    sizes = Sizes.of(ModelConfig.from_dict(PRESETS[name]))
    assert sizes.parameters == pytest.approx(total, rel=0.01)
    assert sizes.active_parameters == pytest.approx(active, rel=0.03)
    assert sizes.cache_bytes_per_token == cache


def test_fp8_halves_what_is_quantized() -> None:
    """The published V3 checkpoint is 688.6 GB on disk, with its MTP module."""
    sizes = Sizes.of(ModelConfig.from_dict(PRESETS["v3"]))
    assert sizes.disk_bytes == pytest.approx(688.6e9, rel=0.002)
    plain = {key: value for key, value in PRESETS["v3"].items() if key != "quantization_config"}
    assert Sizes.of(ModelConfig.from_dict(plain)).weight_bytes == pytest.approx(2 * 671e9, rel=0.01)
    assert sizes.weight_bytes + sizes.mtp_bytes < sizes.disk_bytes
    assert sizes.read_bytes_per_token == pytest.approx(sizes.active_parameters, rel=0.05)


def test_tied_embeddings_are_read_once() -> None:
    config = {**PRESETS["tiny"], "tie_word_embeddings": True}
    tied, plain = (Sizes.of(ModelConfig.from_dict(raw)) for raw in (config, PRESETS["tiny"]))
    assert plain.parameters - tied.parameters == 512 * 256
    assert plain.active_parameters == tied.active_parameters
