"""The learning modules against plain autograd, transformers and finite differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dsv3rt_train import export
from dsv3rt_train.balance import LoadObserver, SequenceBalance, sequence_balance, update_biases
from dsv3rt_train.model.build import TrainableModel, assemble, load_weights
from dsv3rt_train.model.experts import TrainableExperts
from dsv3rt_train.model.numerics import Numerics, quantize_dequantize
from dsv3rt_train.optimizer import Muon, make_optimizers, orthogonalise
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from train_cases import TINY

from dsv3rt.plugin_manager import Plugins
from dsv3rt.weights.source import Checkpoint

Tiny = tuple[TrainableModel, LoadObserver]


def _naive(experts: TrainableExperts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    rows = []
    for n in range(x.shape[0]):
        total = torch.zeros_like(x[n])
        for k in range(ids.shape[1]):
            gate, up = (experts.gate_up[ids[n, k]] @ x[n]).chunk(2)
            total = total + weights[n, k] * (experts.down[ids[n, k]] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("unused", [False, True])
def test_grouped_experts_equal_autograd(unused: bool) -> None:
    torch.manual_seed(1)
    experts = TrainableExperts(5, 6, 4, Numerics()).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(11, 2, dtype=torch.float64, requires_grad=True)
    ids = torch.stack([torch.randperm(3 if unused else 5)[:2] for _ in range(11)])
    leaves = [x, weights, *experts.parameters()]
    push = torch.randn(11, 6, dtype=torch.float64)
    got = torch.autograd.grad((experts(x, weights, ids) * push).sum(), leaves)
    wanted = torch.autograd.grad((_naive(experts, x, weights, ids) * push).sum(), leaves)
    torch.testing.assert_close(experts(x, weights, ids), _naive(experts, x, weights, ids))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def _transformers_logits(folder: Path, ids: Tensor) -> Tensor:
    from transformers import DeepseekV3ForCausalLM

    model: Any = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: Tensor = model.eval()(ids).logits
    return logits


def test_exported_checkpoint_gives_the_same_logits_in_transformers(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = tiny
    for router in model.routers().values():
        torch.nn.init.normal_(router.e_score_correction_bias, std=0.2)  # type: ignore[arg-type]
    export.write(model, tmp_path, TINY, fp8=False)
    ids = torch.randint(3, 96, (2, 17))
    positions = torch.arange(17).expand(2, 17)
    with torch.no_grad():
        logits, _ = model.decoder(ids, positions)
    torch.testing.assert_close(logits, _transformers_logits(tmp_path, ids), atol=2e-5, rtol=1e-4)


def test_fp8_export_dequantizes_to_what_was_written(tiny: Tiny, plugins: Plugins, tmp_path: Path) -> None:
    model, _ = tiny
    export.write(model, tmp_path, TINY, fp8=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.1.mlp.experts.3.down_proj.weight"].dtype == torch.float8_e4m3fn
    assert stored["model.layers.1.mlp.experts.3.down_proj.weight_scale_inv"].shape == (1, 1)
    assert stored["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    for name in (
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.3.eh_proj.weight",
    ):
        assert stored[name].dtype == torch.bfloat16
    again = assemble(model.config, plugins)
    load_weights(again, Checkpoint(tmp_path), torch.device("cpu"))
    reference = model.official()
    for name, tensor in again.official().items():
        wanted = reference[name]
        if export.is_quantized(name, wanted):
            wanted = quantize_dequantize(wanted, 128, 128)
        elif not name.endswith("bias"):
            wanted = wanted.bfloat16().float()
        torch.testing.assert_close(tensor, wanted, atol=1e-7, rtol=1e-6)


def test_official_names_are_complete(tiny: Tiny) -> None:
    model, _ = tiny
    names = set(model.official())
    for name in (
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "mlp.experts.7.up_proj.weight",
    ):
        assert f"model.layers.3.{name}" in names
    assert "model.layers.0.mlp.gate_proj.weight" in names
    parameters = sum(p.numel() for _, p in model.named_parameters())
    assert parameters == sum(t.numel() for n, t in model.official().items() if not n.endswith("bias"))


def test_rounding_has_one_scale_a_block_and_passes_gradients() -> None:
    x = torch.randn(130, 200)
    x[128:] *= 1000
    rounded = quantize_dequantize(x, 128, 128)
    assert rounded.shape == x.shape
    error = (rounded - x).abs()
    assert error[:128].max() <= x[:128].abs().max() / 448 * 16
    assert (error <= x.abs() / 16 + x.abs().max() * 1e-4).all()
    leaf = x.clone().requires_grad_()
    (Numerics(fp8=True).weight(leaf) * 3).sum().backward()
    assert (leaf.grad == 3).all()


def test_bias_moves_against_the_load(tiny: Tiny) -> None:
    model, observer = tiny
    layer = 1
    observer.real_BT = torch.tensor([[True, True, False]])
    observer(layer, torch.ones(3, 2), torch.tensor([[0, 1], [0, 2], [5, 6]]))
    update_biases(model.routers(), observer, 0.5)
    bias = model.routers()[layer].e_score_correction_bias
    assert bias.tolist() == [-0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert observer.busiest()[layer] == pytest.approx(2 / (4 / 8))
    assert model.routers()[2].e_score_correction_bias.abs().max() == 0


def _balance_by_the_paper(scores_TE: Tensor, chosen: int) -> float:
    """V3 report, equations 17-20 for one sequence, without alpha, written as printed."""
    length, experts = scores_TE.shape
    total = 0.0
    for i in range(experts):
        f = sum(int(i in scores.topk(chosen).indices) for scores in scores_TE) * experts / (chosen * length)
        p = sum(float(scores[i] / scores.sum()) for scores in scores_TE) / length
        total += f * p
    return total


def test_sequence_balance_is_the_papers() -> None:
    torch.manual_seed(2)
    scores = torch.rand(3, 9, 8, dtype=torch.float64) ** 3
    real = torch.arange(9) < torch.tensor([[9], [4], [1]])
    wanted = [_balance_by_the_paper(scores[b, : int(real[b].sum())], 2) for b in range(3)]
    torch.testing.assert_close(sequence_balance(scores, real, 2), torch.tensor(wanted, dtype=torch.float64))
    even = torch.eye(8, dtype=torch.float64)[None] + 1e-9
    assert float(sequence_balance(even, torch.ones(1, 8, dtype=torch.bool), 1)) == pytest.approx(1.0)


def test_sequence_balance_is_gathered_from_every_router(tiny: Tiny) -> None:
    """Each layer's scores, and gradients that make a busy expert less likely."""
    model, observer = tiny
    balance = SequenceBalance(model.routers(), observer, chosen=2)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    observer.real_BT = real
    seen: dict[int, Tensor] = {}
    for layer, router in model.routers().items():
        router.register_forward_hook(lambda module, args, _, layer=layer: seen.update({layer: module.scores(args[0])}))
    model.decoder.hidden(torch.randint(3, 90, (2, 6)), torch.arange(6).expand(2, 6))
    taken = balance.take()
    assert set(seen) == {1, 2}
    means = [sequence_balance(scores.view(2, 6, -1), real, 2).mean() for scores in seen.values()]
    torch.testing.assert_close(taken, means[0] + means[1])
    taken.backward()  # type: ignore[no-untyped-call]
    gradients = [router.weight.grad for layer, router in model.routers().items() if layer in seen]
    assert all(isinstance(g, Tensor) and g.abs().max() > 0 for g in gradients)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 32, 20), (20, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.6 and values.max() < 1.3


def test_every_parameter_has_one_optimizer(tiny: Tiny) -> None:
    model, _ = tiny
    for name in ("adamw", "muon"):
        optimizers = make_optimizers(model.named_parameters(), name=name, lr=1e-3, weight_decay=0.1)
        owned = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        assert len(owned) == len({id(p) for p in owned}) == len(list(model.named_parameters()))
        assert any(isinstance(o, Muon) for o in optimizers) == (name == "muon")


def test_config_written_is_the_config_read(tiny: Tiny, tmp_path: Path) -> None:
    export.write(tiny[0], tmp_path, TINY, fp8=True)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["quantization_config"]["weight_block_size"] == [128, 128]
    assert {k: written[k] for k in TINY} == TINY
