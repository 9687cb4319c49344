"""The ablation's record as a picture: a row a variant, a dot a seed, and how far the plain model's seeds lie apart.

Seed 0, which all variants have, is the filled dot.

    python benchmarks/ablation_picture.py    # draws docs/images/hnet_mechanisms.png anew

Drawn from the JSON files in benchmarks/results/ablation/doorkey, as the tables are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from ablation_tables import results_of, value
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from timing import ROOT

BLUE, GREY = "#0072b2", "#e3e3e3"


@dataclass
class Options:
    """What to draw."""

    group: str = "mechanisms"
    """Which group of variants; the first of them is what the others are held against."""
    results: Path = ROOT / "benchmarks" / "results" / "ablation" / "doorkey"
    """Folder of the results."""
    out: Path = ROOT / "docs" / "images" / "hnet_mechanisms.png"
    """The picture."""


@dataclass(frozen=True)
class Panel:
    """A column of the picture: something that was measured at one of the two points."""

    title: str
    when: str
    of: Callable[[dict[str, Any]], float | None]
    logarithmic: bool = False


PANELS = (
    Panel("bits a frame, 5 CPU-minutes", "cpu", lambda e: e["bits"]["above_floor"], logarithmic=True),
    Panel("exact@15, 5 CPU-minutes", "cpu", lambda e: value(e, "15", "dream")),
    Panel("exact@15, 5,000 updates", "updates", lambda e: value(e, "15", "dream")),
    Panel("frames trained a CPU-second", "updates", lambda e: e["frames_per_cpu_second"], logarithmic=True),
)


def draw(options: Options) -> int:
    """Draw the record; how many rows it has."""
    rows = results_of(options.group, options.results)
    if not rows:
        raise SystemExit(f"{options.results} holds no results of {options.group}: run benchmarks/ablation.py first")
    figure = Figure(figsize=(12, 0.9 + 0.24 * len(rows)), dpi=160, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS):
        for row, results in enumerate(rows.values()):
            reached = [(r["plan"]["seed"], r["evaluations"].get(panel.when)) for r in results]
            dots = [(seed, x) for seed, at in reached if at is not None and (x := panel.of(at)) is not None]
            if row == 0 and dots:  # what the others are held against
                axes.axvspan(min(x for _, x in dots), max(x for _, x in dots), color=GREY, zorder=0)
            for seed, x in dots:
                axes.plot(x, row, "o", color=BLUE, markersize=5, fillstyle="full" if seed == 0 else "none")
        if panel.logarithmic:
            axes.set_xscale("log")
            far = axes.get_xlim()[1] > 1000 * axes.get_xlim()[0]
            axes.xaxis.set_major_locator(LogLocator(subs=(1,) if far else (1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(axis="x", which="both", labelsize=7)
        axes.grid(axis="both", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.savefig(options.out)
    return len(rows)


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    print(f"{chosen.out} shows {draw(chosen)} variants")
