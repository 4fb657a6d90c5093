"""The drawings of `nas_ranking.py`: each proxy's rank correlations, accuracy over scores."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plots
from matplotlib.axes import Axes

Record = Mapping[str, Any]  # Any: JSON

PANELS = (
    ("kendall_tau", "Kendall's tau, all"),
    ("partial_tau_given_parameters", "partial tau given parameters"),
    ("tau_at_equal_macs", "tau among equal MACs"),
)
TICKS = (5, 6, 7, 8, 10, 15, 20, 30, 50, 90)
SHOWN = ("parameters", "diswot", "diswot semantic", "diswot relation", "nwot", "zen")


def draw(result: Record, path: Path) -> None:
    """A row a proxy, a panel a correlation; the dashed line is the number of parameters."""
    everything = result["parts"][0]
    proxies: Record = everything["proxies"]
    drawn = plots.figure(11, 1.2 + 0.26 * len(proxies))
    for place, (axes, (key, label)) in enumerate(
        zip(drawn.subplots(1, len(PANELS), sharey=True), PANELS, strict=True)
    ):
        rows = [plots.Row(label=n, values=[], ours="diswot" in n, note="") for n in proxies]
        plots.dress(axes, rows, label)
        axes.axvline(0, color=plots.THEME.baseline, linewidth=1)
        intervals(axes, [proxies[row.label][key] for row in rows], [row.ours for row in rows])
        if place == 0:
            size = proxies["parameters"]["kendall_tau"]["value"]
            plots.limit(axes, size, f"parameters {size:.2f}")
    drawn.suptitle(
        f"{everything['n']} architectures, dots with 95 % bootstrap intervals",
        color=plots.THEME.ink,
        fontsize=10,
    )
    plots.save(drawn, path)


def intervals(axes: Axes, found: Sequence[Record | None], ours: Sequence[bool]) -> None:
    """A dot with its interval a row; nothing where there is no value."""
    for place, (one, own) in enumerate(zip(found, ours, strict=True)):
        if one is None:
            continue
        colour = plots.THEME.series[0] if own else plots.THEME.baseline
        axes.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=2)
        axes.scatter([one["value"]], [place], s=22, color=colour, zorder=3)


def scatter(lines: Sequence[Record], columns: Mapping[str, Sequence[float]], path: Path) -> None:
    """Test error (log) over a few scores: a dot an architecture, darker with more MACs."""
    drawn = plots.figure(11, 6)
    error = [100 - line["accuracy"] for line in lines]
    millions = [value / 1e6 for value in columns["macs"]]
    for axes, name in zip(drawn.subplots(2, 3, sharey=True).flat, SHOWN, strict=True):
        values = _readable(name, columns[name])
        dots = axes.scatter(values, error, c=millions, s=9, cmap="viridis_r", lw=0, rasterized=True)
        axes.set_xlabel(_label(name), color=plots.THEME.muted)
        axes.tick_params(colors=plots.THEME.muted, labelsize=8)
        axes.grid(color=plots.THEME.grid)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if name == "parameters":
            axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.set_ylim(100, 5)  # best at the top
    drawn.align_xlabels()
    bar = drawn.colorbar(dots, ax=drawn.axes, label="million MACs")
    bar.outline.set_visible(False)
    drawn.supylabel("CIFAR-10 test error, %", color=plots.THEME.muted, fontsize=10)
    plots.save(drawn, path)


def _label(name: str) -> str:
    scale = {"parameters": " (log)", "diswot semantic": ", -log10 of the distance"}
    scale["diswot relation"] = scale["diswot semantic"]
    return name + scale.get(name, "")


def _readable(name: str, values: Sequence[float]) -> list[float]:
    """Semantic and relation distances on a log scale; -inf at the left edge."""
    shown = [-math.log10(-v) if v < 0 else math.inf for v in values] if _distance(name) else values
    finite = [value for value in shown if math.isfinite(value)]
    floor = min(finite) - 0.05 * (max(finite) - min(finite))
    ceiling = max(finite)
    return [value if math.isfinite(value) else floor if value < 0 else ceiling for value in shown]


def _distance(name: str) -> bool:
    return name in ("diswot semantic", "diswot relation")
