"""The curves of `growing.py`: each model's points against updates and against CPU-seconds."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

MODELS = {"small": "#888a85", "grown": "#cc0000", "scratch": "#3465a4"}  # and their colours
AHEAD = 15  # dreamed steps after which pictures are compared
CURVES = {  # those are drawn that the points have
    "squared_error": "squared error of a pixel",
    "bits": "bits to foretell a frame's code",
    "seen_exact": "frames painted exactly",
    "dreamed_exact": f"exact after {AHEAD} dreamed steps",
    "seen_psnr": "painted, dB",
    "dreamed_psnr": f"after {AHEAD} dreamed steps, dB",
}


def draw(models: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Each curve against updates and against CPU-seconds; those of `grown` count what `small` had before."""
    curves = [curve for curve in CURVES if all(curve in point for points in models.values() for point in points)]
    figure = Figure(figsize=(14, 6), layout="constrained")
    rows = figure.subplots(2, len(curves), sharey="col")
    for axes, x, label in zip(rows, ("update", "cpu_seconds"), ("update of the run", "CPU-seconds in all")):
        for ax, curve in zip(axes, curves):
            for name, points in models.items():
                before = models["small"][-1][x] if name == "grown" and x == "cpu_seconds" else 0.0
                places, values = [before + p[x] for p in points], [p[curve] for p in points]
                ax.plot(places, values, ".-", color=MODELS[name], linewidth=1, label=name)
            ax.set_title(CURVES[curve], fontsize=10)
            ax.set_xlabel(label, fontsize=8)
            ax.grid(alpha=0.3)
            if curve in ("squared_error", "bits"):
                ax.set_yscale("log")
    rows[0][0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
