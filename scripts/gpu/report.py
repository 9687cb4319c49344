"""The GPU check in words: a line for each part as it ends, and the table of all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from worldmodel.scripts.gpu.compare import achieved

Result = Mapping[str, Any]


def one_line(name: str, result: Result, rates: Result) -> str:
    """What one part came to."""
    status = result.get("status", "pass")
    return f"{status:7} {name}: {result.get('reason') or _measured(result, rates)}"


def _measured(result: Result, rates: Result) -> str:
    if "outputs" in result:
        return f"{worst(result)}, {times(result)} ms, {_rates(result, rates)}"
    skipped = ("status", "traceback", "worst_gradients", "worst_terms", "errors_by_step", "seconds")
    shown = {k: _short(v) for k, v in result.items() if k not in skipped}
    return ", ".join(f"{k} {v}" for k, v in shown.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def worst(result: Result) -> str:
    """The largest error by norm, of outputs and of gradients."""
    kinds = {"out": result["outputs"], "grad": list(result["gradients"].values())}
    return ", ".join(f"{kind} {max(_number(e) for e in errors):.0e}" for kind, errors in kinds.items() if errors)


def _number(error: Result) -> float:
    value = error.get("by_norm", float("inf"))
    return value if value == value else float("inf")  # max() overlooks NaN


def times(result: Result) -> str:
    """Forward, and forward with its gradient where there is one, in milliseconds."""
    return "/".join(f"{result[which]:.3g}" for which in ("forward_ms", "both_ms") if which in result)


def _rates(result: Result, rates: Result) -> str:
    found = achieved(result, rates, result.get("precision", ""))
    words = [f"{found['gb_per_s']:.3g} GB/s"]
    words += [f"{found['tflop_per_s']:.3g} TFLOP/s"] if "tflop_per_s" in found else []
    words += [f"{100 * found['share_of_card']:.0f}% of the card"] if "share_of_card" in found else []
    return ", ".join(words)


def summary(content: Result) -> str:
    """What failed, then all kernels, a line for each size and precision, then the models."""
    parts = content["parts"]
    kernels = [p for p in parts if p["group"] == "kernels"]
    bad = [p for p in parts if p["status"] in ("fail", "error")]
    out = ["", _kernel_table(kernels, content["rates"])] if kernels else []
    out += ["", *(one_line(p["name"], _unnamed(p), content["rates"]) for p in parts if p["group"] == "models")]
    out += ["", f"{len(bad)} of {len(parts)} parts failed or broke" + (":" if bad else "")]
    out += [f"  {one_line(p['name'], p, content['rates'])[:300]}" for p in bad]
    counts = {s: sum(p["status"] == s for p in parts) for s in ("pass", "fail", "error", "missing", "skipped")}
    return "\n".join([*out, ", ".join(f"{n} {status}" for status, n in counts.items())])


def _unnamed(part: Result) -> dict[str, Any]:
    named = ("group", "name", "what", "model", "boundary", "arguments", "parameters", "host_synchronisations")
    return {key: value for key, value in part.items() if key not in named}


def _kernel_table(parts: list[Any], rates: Result) -> str:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for p in parts:
        rows.setdefault((f"{p['kernel']} {p['size']}", p["precision"]), {})[p["backend"]] = p
    width = max(len(label) for label, _ in rows)
    lines = ["kernels: best share of the card, then ms forward/with gradient and the worst error of each backend"]
    for (label, precision), backends in rows.items():
        good = [achieved(p, rates, precision) for p in backends.values() if p["status"] == "pass"]
        best = max((found.get("share_of_card", 0.0) for found in good), default=0.0)
        tried = [(name, p) for name, p in backends.items() if p["status"] not in ("missing", "skipped")]
        cells = " | ".join(f"{name} {_cell(p)}" for name, p in tried)
        lines.append(f"{label:{width}} {precision:5} {100 * best:3.0f}%  {cells}")
    return "\n".join(lines)


def _cell(part: Result) -> str:
    if part["status"] == "error":
        return "ERROR"
    mark = "" if part["status"] == "pass" else "FAIL "
    return f"{mark}{times(part)} ({max(map(_number, (*part['outputs'], *part['gradients'].values()))):.0e})"
