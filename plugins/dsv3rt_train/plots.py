"""The curves of a run as a PNG: loss, load of the busiest expert and of every one, agreement of drafts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3rt.errors import UserError
from dsv3rt_train.loop import METRICS_FILE


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics. Raises UserError."""
    path = run / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{run} has no {METRICS_FILE}", fix="name the folder of a training run")
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _figure(width: float, height: float) -> Any:
    """An empty matplotlib figure. Raises UserError when matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed", fix="pip install 'dsv3rt[train]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_balance(runs: Sequence[Path], out: Path) -> Path:
    """The load of the busiest expert in several runs, one below the other on one scale."""
    figure = _figure(8, 2.6 * len(runs))
    for axes, run in zip(figure.subplots(len(runs), 1, sharex=True, sharey=True), runs, strict=True):
        _draw_busiest(axes, read_metrics(run))
        axes.set(title=f"{run.name}", xlabel="step")
    figure.savefig(out, dpi=110)
    return out


def _draw_busiest(axes: Any, metrics: list[dict[str, Any]]) -> None:
    steps = [line["step"] for line in metrics]
    for layer in sorted(metrics[-1]["busiest"], key=int) if metrics else []:
        axes.plot(steps, [line["busiest"].get(layer) for line in metrics], label=f"layer {layer}", linewidth=0.8)
    axes.axhline(1.5, color="grey", linestyle=":")
    axes.set(ylabel="busiest expert / mean load")
    axes.legend(ncols=3, fontsize="small")


def draw(run: Path, out: Path | None = None) -> Path:
    """Write the picture (default: RUN/curves.png). Raises UserError when matplotlib is missing."""
    metrics = read_metrics(run)
    steps = [line["step"] for line in metrics]
    figure = _figure(8, 11)
    loss, balance, drafts, loads = figure.subplots(4, 1)
    loss.plot(steps, [line["loss"] for line in metrics], label="next token", linewidth=1)
    with_mtp = [line for line in metrics if "mtp_loss" in line]
    mtp_steps = [line["step"] for line in with_mtp]
    loss.plot(mtp_steps, [line["mtp_loss"] for line in with_mtp], label="token after next", linewidth=1)
    loss.set(ylabel="loss, nats a token", yscale="log")
    loss.legend()
    _draw_busiest(balance, metrics)
    drafts.plot(mtp_steps, [line["mtp_agreement"] for line in with_mtp], linewidth=1)
    drafts.set(ylabel="first drafts the model agrees with", xlabel="step", ylim=(0, 1))
    _draw_loads(loads, [line["load"] for line in metrics if "load" in line][-10:])
    path = out or run / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _draw_loads(axes: Any, records: list[dict[str, list[float]]]) -> None:
    """Every expert's mean load over the last records, a row a layer."""
    layers = sorted(records[-1], key=int) if records else []
    means = [[sum(loads) / len(loads) for loads in zip(*(r[layer] for r in records), strict=True)] for layer in layers]
    if means:
        picture = axes.imshow(means, aspect="auto", cmap="coolwarm", vmin=0.5, vmax=1.5, interpolation="nearest")
        axes.figure.colorbar(picture, ax=axes, label="load / mean load")
        axes.set_yticks(range(len(layers)), layers)
    axes.set(xlabel="expert", ylabel="layer")
