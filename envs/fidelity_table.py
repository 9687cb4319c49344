"""A fidelity report as markdown: one table of frames, one of rewards and ends, one line of chunks."""

from __future__ import annotations

from typing import Any

PREDICTIONS = {
    "dream": "dream",
    "closed_loop": "closed loop",
    "shuffled_actions": "shuffled actions",
    "repeat_last_frame": "repeat last frame",
}
CLASSES = {
    "all": "all",
    "changed": "changed",
    "seen": "on seen ground",
    "changed_seen": "changed, on seen ground",
    "changed_way": "changed, on it all the way",
}


def fidelity_table(report: dict[str, Any]) -> str:
    """Write a report of `worldmodel.envs.fidelity.measure_fidelity` as markdown, also after a trip through JSON."""
    horizons = report["horizons"]
    some = next(iter(horizons.values()))
    names = [name for name in PREDICTIONS if name in some["frames"]]
    tiled = "exact" in some["frames"][names[0]]["all"]
    figure = "frames exact (tiles right)" if tiled else "PSNR in dB (mean absolute error)"
    way = f"{report['context']} real frames, then open loop"
    if report.get("realign"):
        way += f", realign {report['realign']}"
    lines = [f"{report.get('environment')}, {way}. {figure}:", ""]
    rows = []
    for horizon, entry in horizons.items():
        for label in (c for c in CLASSES if c in entry["frames"][names[0]]):
            scores = [entry["frames"][name][label] for name in names]
            cells = [_exact(s) if tiled else _psnr(s) for s in scores]
            rows.append([horizon, CLASSES[label], str(scores[0]["frames"]), *cells])
    lines += _table(["step", "frames", "n", *(PREDICTIONS[name] for name in names)], rows)

    modalities = list(some.get("modalities", {}))
    if modalities:
        lines += ["", "Modality by modality, all frames, exact or PSNR in dB (mean absolute error):", ""]
        rows = []
        for horizon, entry in horizons.items():
            for modality in modalities:
                scores = [entry["modalities"][modality][name]["all"] for name in names]
                rows.append([horizon, modality, *(_exact(s) if "exact" in s else _psnr(s) for s in scores)])
        lines += _table(["step", "modality", *(PREDICTIONS[name] for name in names)], rows)

    lines += ["", "Rewards and terminations, precision / recall / F1:", ""]
    names = [name for name in names if name != "repeat_last_frame"]
    rows = []
    for horizon, entry in horizons.items():
        for label in ("reward", "termination"):
            scores = [entry[label][name] for name in names]
            size = _number(scores[0].get("size_error"), "{:.3f}")
            rows.append([horizon, label, f"{scores[0]['true']} of {scores[0]['steps']}", *map(_event, scores), size])
    lines += _table(["step", "event", "n", *(PREDICTIONS[name] for name in names), "size error, dream"], rows)

    lines.append("")
    for key, label in (("chunks", "chunks a frame"), ("start_entropy", "start entropy a frame in nats")):
        parts = [f"{PREDICTIONS.get(name, name)} {value:.2f}" for name, value in report.get(key, {}).items()]
        if parts:
            lines.append(f"{label}: {', '.join(parts)}  ")
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _exact(scores: dict[str, Any]) -> str:
    return "-" if scores["exact"] is None else f"{100 * scores['exact']:.1f}% ({100 * scores['tile_rate']:.1f}%)"


def _psnr(scores: dict[str, Any]) -> str:
    return "-" if scores["psnr"] is None else f"{scores['psnr']:.1f} ({scores['error']:.4f})"


def _event(scores: dict[str, Any]) -> str:
    return " / ".join(_number(scores[key], "{:.2f}") for key in ("precision", "recall", "f1"))
