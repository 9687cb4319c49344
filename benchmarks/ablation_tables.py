"""The ablation's tables: a group's variants at equal updates, at equal CPU time, and what each of them costs.

Short ones stand in docs/hnet.md, the whole record in docs/ablation.md.

A cell is the mean over seeds, with the least and the greatest in brackets where there are several.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speed_report import markdown
from variants import GROUPS, VARIANTS

Result = dict[str, Any]
HORIZONS = ("1", "5", "15", "50")

# The mechanisms by what they are about: a variant stands where the last of its settings, which makes it what it is,
# begins with one of these.
SECTIONS: dict[str, tuple[str, ...]] = {
    "depth": ("causal.0.extra", "causal.0.lengths", "causal.0.frame_boundary", "causal.1."),
    "path": ("side.path",),
    "x0": ("causal.0.cut_off",),
    "residual": ("causal.0.residual",),
    "values": ("causal.0.extra", "side.values"),  # a main network that sees F_t alone has no codes to embed
    "loops": ("causal.0.extra", "main.loop."),  # a core that follows the router needs the extra tokens
    "order": ("frame.order",),
    "hidden": ("frame.mask", "latent.forget"),
    "past": ("frame.sees_past", "frame.paint_past"),
    "time": ("time.",),
    "latent": ("latent.kind", "latent.groups"),
    "drawn": ("training.",),
}


def report(group: str, folder: Path) -> str:
    """The tables of a group from the results in a folder; variants without any are left out."""
    rows = results_of(group, folder)
    if not rows:
        return "not measured yet"
    some = next(iter(rows.values()))[0]
    plan, bits = some["plan"], next(iter(some["evaluations"].values()))["bits"]
    score = next(iter(some["evaluations"].values()))["score"]
    # Only in grids is it known what ground a context has shown.
    named, ground = ("share of frames that are exact", " on seen ground") if score == "exact" else ("PSNR in dB", "")
    return "\n\n".join(
        (
            f"{some['environment']}, changed frames of the test set{ground}; {named} after 1, 5, 15 and 50 dreamed "
            f"steps. Bits a frame above the {bits['floor']:,.0f} that a perfectly painted one costs.",
            f"After {plan['updates']:,} updates:",
            quality(rows, "updates", score),
            f"After {plan['cpu_minutes']:g} CPU-minutes of training:",
            quality(rows, "cpu", score),
            "What it costs:",
            costs(rows),
        )
    )


def glance(group: str, folder: Path) -> str:
    """The short table of a group: how good at the two points, and what it costs."""
    return short(results_of(group, folder))


def mechanism(section: str, folder: Path) -> str:
    """A short table of those mechanisms that a section is about, the plain model above them."""
    plain, *others = GROUPS["mechanisms"]
    wanted = [plain, *(label for label in others if is_about(section, GROUPS["mechanisms"][label]))]
    found = results_of("mechanisms", folder)
    return short({label: found[label] for label in wanted if label in found})


def short(rows: dict[str, list[Result]]) -> str:
    """A line a variant; no table where there is nothing to compare."""
    if len(rows) < 2:
        return "not measured yet"
    some = next(iter(rows.values()))[0]
    plan, score = some["plan"], next(iter(some["evaluations"].values()))["score"]
    shown, named = (percent, "exact") if score == "exact" else (decimals, "PSNR")
    lines = []
    for label, results in rows.items():
        line = [label, str(len(results))]
        for when in ("updates", "cpu"):
            reached = [result["evaluations"][when] for result in results if when in result["evaluations"]]
            line.append(spread([e["bits"]["above_floor"] for e in reached], whole))
            line += [spread([value(e, horizon, "dream") for e in reached], shown) for horizon in ("1", "15")]
        last = [max(result["evaluations"].values(), key=lambda e: e["update"]) for result in results]
        line.append(spread([result["flops_a_frame"] / 1e6 for result in results], decimals))
        lines.append([*line, spread([e["frames_per_cpu_second"] for e in last], whole)])
    header = ["", "seeds"]
    for at in (f"{plan['updates']:,} updates", f"{plan['cpu_minutes']:g} CPU-minutes"):
        header += [f"bits, {at}", f"{named}@1", "@15"]
    return markdown([*header, "MFLOP a frame", "frames trained a CPU-second"], lines)


def is_about(section: str, variant: str) -> bool:
    """Whether a section is about what makes a variant what it is."""
    return bool(settings := VARIANTS[variant]) and settings[-1].startswith(SECTIONS[section])


def results_of(group: str, folder: Path) -> dict[str, list[Result]]:
    """The results of each row, seed after seed. Of runs that do not compare only the most frequent kind counts."""
    found = {
        label: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{variant}_seed[0-9]*.json"))]
        for label, variant in GROUPS[group].items()
    }
    kinds = Counter(kind(result) for results in found.values() for result in results if result["evaluations"])
    if not kinds:
        return {}
    usual = kinds.most_common(1)[0][0]
    kept = {label: [r for r in results if r["evaluations"] and kind(r) == usual] for label, results in found.items()}
    return {label: results for label, results in kept.items() if results}


def kind(result: Result) -> tuple[int, int, float]:
    """What makes two runs comparable."""
    plan = result["plan"]
    return plan.get("edition", 1), plan["updates"], plan["cpu_minutes"]


def quality(rows: dict[str, list[Result]], when: str, score: str) -> str:
    """How good the models are at one of the two points."""
    shown = percent if score == "exact" else decimals
    lines = []
    for label, results in rows.items():
        reached = [result["evaluations"][when] for result in results if when in result["evaluations"]]
        bits = [evaluation["bits"] for evaluation in reached]
        line = [label, str(len(reached))]
        line.append(spread([b["above_floor"] for b in bits], whole))
        line += [spread([b[part] for b in bits], whole) for part in ("code", "start")]
        line.append(spread([b["pixels"] - b["floor"] for b in bits], whole))
        for horizon in HORIZONS:
            line.append(spread([value(e, horizon, "dream") for e in reached], shown))
        line.append(spread([value(e, "15", "closed_loop") for e in reached], shown))
        other = "cpu_seconds" if when == "updates" else "update"
        line.append(spread([e[other] for e in reached], whole))
        lines.append(line)
    other = "CPU-seconds" if when == "updates" else "updates"
    header = ["", "seeds", "bits", "codes", "starts", "pixels", *(f"@{h}" for h in HORIZONS), "closed loop", other]
    return markdown(header, lines)


def costs(rows: dict[str, list[Result]]) -> str:
    """Sizes, and what a frame takes; of the last measurement of each run."""
    lines = []
    for label, results in rows.items():
        last = [max(result["evaluations"].values(), key=lambda e: e["update"]) for result in results]
        lines.append(
            [
                label,
                spread([e["chunks"]["closed_loop"] for e in last], decimals),
                spread([e["chunks"]["dream"] for e in last], decimals),
                spread([e["main_tokens_a_frame"] for e in last], decimals),
                spread([e["loops_a_token"] for e in last], decimals),
                spread([result["parameters"] / 1e6 for result in results], lambda x: f"{x:.2f}M"),
                spread([result["flops_a_frame"] / 1e6 for result in results], decimals),
                spread([e["frames_per_cpu_second"] for e in last], whole),
            ]
        )
    header = [
        "",
        "chunks a frame",
        "dreamed",
        "main tokens a frame",
        "loops a token",
        "parameters",
        "MFLOP a frame (forward)",
        "frames trained a CPU-second",
    ]
    return markdown(header, lines)


def value(evaluation: dict[str, Any], horizon: str, source: str) -> float | None:
    """A score, None where no window of the test set is so long."""
    return evaluation["horizons"].get(horizon, {}).get(source)


def spread(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """Mean, and in brackets the least and the greatest of several."""
    there = [v for v in values if v is not None]
    if not there:
        return "-"
    mean, least, most = shown(statistics.mean(there)), shown(min(there)), shown(max(there))
    return mean if least == most else f"{mean} ({least} to {most})"


def percent(x: float) -> str:
    """A share."""
    return f"{x:.0%}"


def decimals(x: float) -> str:
    """A number of some units."""
    return f"{x:.2f}" if x < 10 else f"{x:.1f}"


def whole(x: float) -> str:
    """A number of many units; small ones keep a digit."""
    return f"{x:,.0f}" if abs(x) >= 20 else f"{x:.1f}"
