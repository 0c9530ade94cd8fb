"""Linear, FeedForward and Experts: loading, the choice of kernel, gradients, the compiler.

Legend: N tokens, D hidden, F expert hidden, E experts, K chosen experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from dsv3rt_fp8 import native_ops
from dsv3rt_fp8.experts import Experts
from dsv3rt_fp8.modules import FeedForward, Linear, Storage
from dsv3rt_fp8.numerics import round_activations
from dsv3rt_fp8.quantization import BlockFP8, Dense
from stored import Stored, relative_error, stored_fp8, value_of
from torch import Tensor
from torch.nn import functional as F

from dsv3rt.config import BlockFP8 as BlockFP8Config
from dsv3rt.errors import CheckpointError, ConfigError, UsageError
from dsv3rt.interfaces import Site
from dsv3rt.testing.contracts import SMALL

CPU = torch.device("cpu")
STORAGE = Storage(torch.float32)
D, F_, E, K = 200, 140, 9, 3
NARROW, WIDE = (D, F_), (520, 640)  # with tiles, few tokens are computed by them from 512 columns on
FORMATS = ("fp8", "bfloat16", "float16", "float32")
both_sizes = pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])


def stored_matrix(name: str, rows: int, columns: int, kind: str) -> dict[str, Tensor]:
    if kind == "fp8":
        tensors = stored_fp8(name, rows, columns, odd=True)
        tensors[f"{name}.weight_scale_inv"] = tensors[f"{name}.weight_scale_inv"].clamp(max=1e-3)
        return tensors
    return {f"{name}.weight": (torch.randn(rows, columns) / columns**0.5).to(getattr(torch, kind))}


def stored_network(prefix: str, kind: str, size: tuple[int, int] = NARROW) -> dict[str, Tensor]:
    hidden, intermediate = size
    return {
        **stored_matrix(f"{prefix}.gate_proj", intermediate, hidden, kind),
        **stored_matrix(f"{prefix}.up_proj", intermediate, hidden, kind),
        **stored_matrix(f"{prefix}.down_proj", hidden, intermediate, kind),
    }


def network(tensors: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    gate, up, down = (value_of(tensors, f"{prefix}.{name}_proj") for name in ("gate", "up", "down"))
    return (F.silu(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T


def loaded_experts(kind: str, size: tuple[int, int] = NARROW) -> tuple[Experts, dict[str, Tensor]]:
    networks = [stored_network(f"mlp.experts.{e}", kind, size) for e in range(E)]
    tensors = {name: tensor for stored in networks for name, tensor in stored.items()}
    with torch.device("meta"):
        module = Experts(E, *size, STORAGE)
    module.load_tensors(Stored(tensors), "mlp.experts", CPU)
    return module, tensors


def loaded_ffn(kind: str, size: tuple[int, int] = NARROW) -> tuple[FeedForward, dict[str, Tensor]]:
    tensors = stored_network("mlp", kind, size)
    with torch.device("meta"):
        module = FeedForward(*size, STORAGE)
    for name, child in module.named_children():
        child.load_tensors(Stored(tensors), f"mlp.{name}", CPU)  # type: ignore[operator]
    return module, tensors


def loaded_linear(tensors: Mapping[str, Tensor], rows: int, columns: int, storage: Storage = STORAGE) -> Linear:
    with torch.device("meta"):
        module = Linear(columns, rows, storage)
    module.load_tensors(Stored(tensors), "m", CPU)
    return module


def routing(tokens: int, hidden: int = D) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(tokens)])
    return torch.randn(tokens, hidden), torch.rand(tokens, K), ids


def mixture(tensors: Mapping[str, Tensor], x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    y = torch.zeros(x.shape, dtype=torch.float64)
    for expert in range(E):
        weight = (weights * (ids == expert)).sum(-1, keepdim=True).double()
        y += weight * network(tensors, f"mlp.experts.{expert}", x)
    return y


# ---- computing


@both_sizes
@pytest.mark.parametrize("kind", FORMATS)
def test_experts_match_float64(variant: str, kind: str, size: tuple[int, int]) -> None:
    module, tensors = loaded_experts(kind, size)
    assert module.table is not None
    for tokens in (1, 3, 40):
        x, weights, ids = routing(tokens, size[0])
        assert relative_error(module(x, weights, ids), mixture(tensors, x, weights, ids)) < 2e-6


@both_sizes
@pytest.mark.parametrize("kind", FORMATS)
def test_ffn_matches_float64(variant: str, kind: str, size: tuple[int, int]) -> None:
    module, tensors = loaded_ffn(kind, size)
    for tokens in (1, 5, 40):
        x = torch.randn(tokens, size[0])
        assert relative_error(module(x), network(tensors, "mlp", x)) < 2e-6


@both_sizes
@pytest.mark.parametrize("kind", ["fp8", "bfloat16"])
def test_a_token_does_not_depend_on_its_company(variant: str, kind: str, size: tuple[int, int]) -> None:
    experts, ffn = loaded_experts(kind, size)[0], loaded_ffn(kind, size)[0]
    x, weights, ids = routing(70, size[0])
    one = [slice(t, t + 1) for t in range(70)]
    mixed = torch.cat([experts(x[t], weights[t], ids[t]) for t in one])
    plain = torch.cat([ffn(x[t]) for t in one])
    for tokens in range(1, 17):
        part = slice(70 - tokens, 70)
        assert torch.equal(experts(x[part], weights[part], ids[part]), mixed[part])
        assert torch.equal(ffn(x[part]), plain[part])
    assert relative_error(experts(x, weights, ids), mixed.double()) < 2e-6
    assert relative_error(ffn(x), plain.double()) < 2e-6


@pytest.mark.parametrize("kind", ["fp8", "bfloat16"])
def test_the_plain_path_agrees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, tensors = loaded_experts(kind)
    ffn, ffn_tensors = loaded_ffn(kind)
    monkeypatch.setattr(native_ops, "library", lambda: None)
    module.eval()
    ffn.eval()
    assert module.table is None and not ffn.gate_proj.native
    x, weights, ids = routing(7)
    assert relative_error(module(x, weights, ids), mixture(tensors, x, weights, ids)) < 2e-6
    assert relative_error(ffn(x), network(ffn_tensors, "mlp", x)) < 2e-6


def test_silu_far_from_zero(variant: str) -> None:
    """Gates of every size, so that the exponential is seen over its whole range."""
    gates = torch.linspace(-100, 100, 2001)
    weight = torch.eye(2001)
    y = torch.ops.dsv3rt.dense_ffn(gates.view(1, -1), weight, weight, weight)
    expected = F.silu(gates.double()) * gates.double()
    torch.testing.assert_close(y[0].double(), expected, rtol=1e-6, atol=1e-30)


def test_an_id_out_of_range_is_refused() -> None:
    module, _ = loaded_experts("bfloat16")
    if module.table is None:
        pytest.skip("no compiler")
    x, weights, ids = routing(2)
    with pytest.raises(RuntimeError, match="out of range"):
        module(x, weights, ids + E)


def test_weights_are_not_copied() -> None:
    module, tensors = loaded_experts("fp8")
    for index in range(E):
        stored = tensors[f"mlp.experts.{index}.up_proj.weight"]
        assert module.expert(index).up_proj.weight.data_ptr() == stored.data_ptr()


def test_names_are_official() -> None:
    module, tensors = loaded_experts("fp8")
    assert {f"mlp.experts.{name}" for name in module.state_dict()} == set(tensors)


# ---- loading


def test_an_unquantized_matrix_of_an_fp8_checkpoint_is_read_as_it_is() -> None:
    tensors = stored_matrix("m", 30, 50, "bfloat16")
    module = loaded_linear(tensors, 30, 50)
    x = torch.randn(2, 50)
    assert module.weight.dtype == torch.bfloat16
    assert relative_error(module(x), x.double() @ tensors["m.weight"].double().T) < 1e-6


def test_576_rows_have_five_rows_of_scales() -> None:
    tensors = stored_fp8("m", 576, 64)
    assert tensors["m.weight_scale_inv"].shape == (5, 1)
    loaded_linear(tensors, 576, 64)
    tensors["m.weight_scale_inv"] = tensors["m.weight_scale_inv"][:4]
    with pytest.raises(CheckpointError, match="shape"):
        loaded_linear(tensors, 576, 64)


def test_missing_scales_are_named() -> None:
    tensors = stored_fp8("m", 8, 8)
    del tensors["m.weight_scale_inv"]
    with pytest.raises(CheckpointError, match="weight_scale_inv is missing"):
        loaded_linear(tensors, 8, 8)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_codes_are_rejected(code: int) -> None:
    tensors = stored_fp8("m", 8, 8)
    tensors["m.weight"].view(torch.uint8)[3, 3] = code
    with pytest.raises(CheckpointError, match="holds NaN"):
        loaded_linear(tensors, 8, 8)
    loaded_linear(tensors, 8, 8, replace(STORAGE, check_nan=False))


def test_nan_scales_are_rejected() -> None:
    tensors = stored_fp8("m", 8, 8)
    tensors["m.weight_scale_inv"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        loaded_linear(tensors, 8, 8)


def test_ue8m0_scales_stored_as_such() -> None:
    tensors = stored_fp8("m", 16, 16)
    tensors["m.weight_scale_inv"] = torch.tensor([[0.25]]).to(torch.float8_e8m0fnu)
    module = loaded_linear(tensors, 16, 16)
    x = torch.randn(1, 16)
    expected = x.double() @ value_of({**tensors, "m.weight_scale_inv": torch.tensor([[0.25]])}, "m").T
    assert relative_error(module(x), expected) < 1e-6


def test_other_formats_are_refused() -> None:
    with pytest.raises(CheckpointError, match="stored as int8"):
        loaded_linear({"m.weight": torch.zeros(4, 4, dtype=torch.int8)}, 4, 4)


def test_experts_in_two_formats_are_refused() -> None:
    _, tensors = loaded_experts("bfloat16")
    tensors["mlp.experts.2.up_proj.weight"] = tensors["mlp.experts.2.up_proj.weight"].float()
    with torch.device("meta"):
        module = Experts(E, D, F_, STORAGE)
    with pytest.raises(CheckpointError, match="several formats"):
        module.load_tensors(Stored(tensors), "mlp.experts", CPU)


# ---- training, moving, compiling


def test_gradients_reach_every_chosen_expert() -> None:
    module, tensors = loaded_experts("float32")
    module.requires_grad_(True)
    x, weights, ids = routing(5)
    x.requires_grad_(True)
    weights.requires_grad_(True)
    y = module(x, weights, ids)
    assert relative_error(y.detach(), mixture(tensors, x.detach(), weights.detach(), ids)) < 2e-6
    y.square().sum().backward()
    assert x.grad is not None and weights.grad is not None
    for expert in range(E):
        grad = module.expert(expert).down_proj.weight.grad
        assert (grad is not None and bool(grad.abs().sum() > 0)) == bool((ids == expert).any())


def test_gradients_flow_through_fp8_weights() -> None:
    tensors = stored_fp8("m", 20, 30)
    module = loaded_linear(tensors, 20, 30)
    x = torch.randn(2, 30, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert relative_error(x.grad[0], value_of(tensors, "m").sum(0)) < 1e-5


def test_moving_the_weights_moves_the_addresses() -> None:
    module, tensors = loaded_experts("bfloat16")
    x, weights, ids = routing(3)
    module.to(torch.float32)
    assert module.expert(0).gate_proj.weight.dtype == torch.float32
    assert relative_error(module(x, weights, ids), mixture(tensors, x, weights, ids)) < 2e-6


def test_trained_from_scratch_then_evaluated() -> None:
    with torch.device("meta"):
        module = Experts(E, D, F_, STORAGE)
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, weights, ids = routing(3)
    trained = module(x, weights, ids).detach()
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x, weights, ids), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp8", "bfloat16"])
def test_compiles_into_one_graph(kind: str) -> None:
    experts, ffn = loaded_experts(kind)[0], loaded_ffn(kind)[0]
    linear = loaded_linear(stored_matrix("m", 24, D, kind), 24, D)

    def block(x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return linear(experts(x * 2, weights, ids) + ffn(x))  # type: ignore[no-any-return]

    x, weights, ids = routing(2)
    with torch.no_grad():
        expected = block(x, weights, ids)
        compiled = torch.compile(block, fullgraph=True)(x, weights, ids)
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)


def test_other_activation_types_keep_their_type() -> None:
    module = loaded_linear(stored_fp8("m", 8, 16), 8, 16)
    assert module(torch.randn(3, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


# ---- the slot


def site(**changes: object) -> Site:
    config = replace(SMALL, quantization=BlockFP8Config())
    placeholder: object = None
    base = Site(config, 0, "", placeholder, torch.float32, torch.float32, CPU)  # type: ignore[arg-type]
    return replace(base, **changes)  # type: ignore[arg-type]


def test_options() -> None:
    assert BlockFP8(site()).storage.round_input is None
    assert BlockFP8(site(options={"activations": "fp8"})).storage.round_input is not None
    for builder, options in (
        (BlockFP8, {"activations": "int8"}),
        (BlockFP8, {"chekc": "on"}),
        (Dense, {"check": "on"}),
    ):
        with pytest.raises(UsageError):
            builder(site(options=options))


def test_other_block_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="64 x 128"):
        BlockFP8(site(config=replace(SMALL, quantization=BlockFP8Config(64, 128))))


def test_the_description_names_the_kernels() -> None:
    assert "native" in BlockFP8(site()).describe(CPU) or "slow" in BlockFP8(site()).describe(CPU)


# ---- rounded activations


def test_rounded_activations_match_the_definition() -> None:
    """W8A8: every FP8 product sees its input rounded, the unquantized ones see it as it is."""
    storage = BlockFP8(site(options={"activations": "fp8"})).storage
    tensors = {name: tensor for e in range(E) for name, tensor in stored_network(f"mlp.experts.{e}", "fp8").items()}
    with torch.device("meta"):
        module = Experts(E, D, F_, storage)
    module.load_tensors(Stored(tensors), "mlp.experts", CPU)
    x, weights, ids = routing(3)

    def product(name: str, value: Tensor) -> Tensor:
        return round_activations(value, ue8m0=False) @ value_of(tensors, name).float().T

    expected = torch.zeros_like(x)
    for expert in range(E):
        prefix = f"mlp.experts.{expert}"
        h = F.silu(product(f"{prefix}.gate_proj", x)) * product(f"{prefix}.up_proj", x)
        expected += (weights * (ids == expert)).sum(-1, keepdim=True) * product(f"{prefix}.down_proj", h)
    assert relative_error(module(x, weights, ids), expected.double()) < 2e-3
    assert relative_error(module(x, weights, ids), mixture(tensors, x, weights, ids)) > 5e-3
    plain = stored_matrix("m", 8, 128, "bfloat16")
    x = torch.randn(2, 128)
    assert relative_error(loaded_linear(plain, 8, 128, storage)(x), x.double() @ value_of(plain, "m").T) < 1e-6
