"""The tables in README and docs, written from the JSON files in benchmarks/results, never by hand.

    python benchmarks/tables.py            # after new results; changes what stands between the table markers
    python benchmarks/tables.py 'glance_*' # only those that are called so

A marker is `<!-- table:NAME -->`, the table ends at `<!-- end -->`.
"""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldmodel.envs.fidelity_table import fidelity_table

sys.path.insert(0, str(Path(__file__).parent))
import ablation_tables
import speed_report
from speed_report import markdown
from variants import ENVIRONMENTS, SEEDS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MISSING = "not measured yet"


def read(name: str) -> dict[str, Any] | None:
    """A result, or None if it was not measured yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def share(value: float | None) -> str:
    """A share as a percentage; a dash where there was nothing to measure."""
    return "-" if value is None else f"{value:.1%}"


def demo() -> str:
    """What `make demo` came to, a row a seed."""
    rows = []
    for path in sorted(RESULTS.glob("demo_seed*.json")):
        s = json.loads(path.read_text())
        agent, dream = f"{s['agent_success']:.0%}, {s['agent_length']:.1f}", f"{s['dream_success']:.0%}"
        random = f"{s['random_success']:.0%}, {s['random_length']:.1f}"
        rows.append([str(s["seed"]), f"{s['real_steps']:,}", f"{s['minutes']:.1f}", agent, random, dream])
    header = ["seed", "real steps", "minutes", "agent: success, steps", "random: success, steps", "agent in the dream"]
    return markdown(header, rows)


def fidelity() -> str:
    """Exact frames of the DoorKey run, the short form."""
    report = read("doorkey_stride")
    if report is None:
        return MISSING
    rows = []
    recorded = read(f"recorded_{report['environment']}")
    for horizon, entry in report["fidelity"]["horizons"].items():
        frames = entry["frames"]
        for label, name in (("changed_seen", "changed"), ("all", "all")):
            names = ("dream", "closed_loop", "shuffled_actions", "repeat_last_frame")
            cells = [share(frames[source][label]["exact"]) for source in names]
            whole = None
            if recorded is not None:
                shown, of = recorded["shown all the way"][label][horizon]
                assert of == frames["dream"][label]["frames"], "these are other windows"
                whole = shown / of
            rows.append([horizon, name, str(frames["dream"][label]["frames"]), cells[0], share(whole), *cells[1:]])
    header = ["step", "frames", "n", "dream", "shown all the way", "closed loop (ceiling)", "shuffled actions"]
    header.append("repeat last frame")
    return f"DoorKey-5x5 from 20,000 random steps, share of frames that are exact:\n\n{markdown(header, rows)}"


def fidelity_full() -> str:
    """The whole report."""
    report = read("doorkey_stride")
    return f"`{report['command']}`\n\n{fidelity_table(report['fidelity']).rstrip()}" if report else MISSING


def history() -> str:
    """What each change was worth."""
    result = read("history")
    if result is None:
        return MISSING
    entries = result["commits"]
    names = [name for name in entries[0]["ms"] if name != "matmul"]
    rows = [[entry["subject"], entry["commit"], *(f"{entry['ms'][name]:.1f}" for name in names)] for entry in entries]
    rows[0][0] = "(before)"
    return f"CPU time in ms, one thread:\n\n{markdown(['after', 'commit', *names], rows)}"


def speeds(table: Callable[[dict[str, Any]], str], part: str = "rates") -> str:
    """One of the tables of speed, of all runs for which that part was measured."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("speed_*[0-9].json"))]
    return "\n\n".join(table(result) for result in results if part in result)


def ablation(table: Callable[[str, Path], str], of: str, environment: str = "doorkey") -> Callable[[], str]:
    """A table of a group of variants, or of a section of docs/hnet.md."""
    return lambda: table(of, RESULTS / "ablation" / environment)


def growing(of: str = "growing") -> str:
    """What a grown model was worth: each model of `growing.py` at its end, the grown one also at once."""
    result = read(of)
    if result is None:
        return MISSING
    names = {"small": "half the size", "grown": "grown from it", "scratch": "the full size from the beginning"}
    rows = []
    for name, points in result["models"].items():
        for point in points if name == "grown" else points[-1:]:
            if 0 < point["update"] < points[-1]["update"]:
                continue
            seconds = point["cpu_seconds"] + (result["models"]["small"][-1]["cpu_seconds"] if name == "grown" else 0)
            row = [names[name] + ("" if point["update"] else ", at once"), f"{seconds:.0f}", f"{point['update']:,}"]
            row += [f"{point['squared_error']:.1e}", f"{point['bits']:.1f}"]
            if "seen_psnr" in point:
                truth = ["painted, dB", "after 15 dreamed steps, dB"]
                row += [f"{point['seen_psnr']:.1f}", f"{point['dreamed_psnr']:.1f}"]
            else:
                truth = ["painted exactly", "exact after 15 dreamed steps (tiles)"]
                row += [f"{point['seen_exact']:.0%}", f"{point['dreamed_exact']:.0%} ({point['dreamed_tiles']:.1%})"]
            rows.append(row)
    header = ["", "CPU-seconds in all", "updates", "squared error of a value", "bits of a frame's code"]
    return markdown([*header, *truth], rows)


def modalities() -> str:
    """DoorKey with and without a second modality: how true dreams are, and what agents made of them."""
    rows = []
    for label, name in {"the picture": "doorkey_stride", "the picture and the direction": "doorkey_direction"}.items():
        report = read(name)
        if report is None:
            return MISSING
        horizons = report["fidelity"]["horizons"]
        exact = [share(horizons[h]["frames"]["dream"]["changed_seen"]["exact"]) for h in ("1", "5", "15", "50")]
        agent = report["agent_real"]
        rows.append([label, *exact, f"{agent['success']:.1%}", f"{agent['mean_return']:.3f}"])
    header = ["observations", "exact@1", "@5", "@15", "@50", "agent: real success", "return"]
    about = "DoorKey-5x5, changed frames on seen ground; all modalities exact; 12,000 updates, one seed"
    return f"{about}:\n\n{markdown(header, rows)}"


def realign() -> str:
    """Dreams of one model, brought in line with their own pictures every so many steps."""
    found = {
        "never": "doorkey_stride",
        "every 5 steps": "doorkey_stride_realign5",
        "every step": "doorkey_stride_realign1",
    }
    rows = []
    for label, report in ((label, read(name)) for label, name in found.items()):
        if report is not None:
            frames = [report["fidelity"]["horizons"][horizon]["frames"]["dream"] for horizon in ("1", "5", "15", "50")]
            seen = [each["changed_seen"] for each in frames]
            rows.append([label, *(f"{share(each['exact'])} ({share(each['tile_rate'])})" for each in seen)])
    if len(rows) < 2:
        return MISSING
    table = markdown(["realigned", "exact@1", "@5", "@15", "@50"], rows)
    return f"DoorKey-5x5, changed frames on seen ground (tiles right), one model:\n\n{table}"


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "fidelity": fidelity,
    "fidelity_full": fidelity_full,
    **{f"ablation_{group}": ablation(ablation_tables.report, group) for group in SEEDS},
    **{
        f"ablation_{group}_pong": ablation(ablation_tables.report, group, "pong")
        for group in ENVIRONMENTS["pong"].groups
    },
    **{f"glance_{group}": ablation(ablation_tables.glance, group) for group in SEEDS if group != "mechanisms"},
    **{
        f"glance_{group}_pong": ablation(ablation_tables.glance, group, "pong") for group in ENVIRONMENTS["pong"].groups
    },
    **{f"mechanism_{section}": ablation(ablation_tables.mechanism, section) for section in ablation_tables.SECTIONS},
    "growing": growing,
    "growing_pong": lambda: growing("growing_pong"),
    "modalities": modalities,
    "realign": realign,
    "speed": lambda: speeds(speed_report.report),
    "acting": lambda: speeds(speed_report.acting, "acting"),
    "floor": lambda: speeds(speed_report.floor, "floor"),
    "history": history,
    "growth": lambda: speeds(speed_report.growth, "growth"),
    "threads": lambda: speeds(speed_report.threads, "threads"),
    "memory": lambda: speeds(speed_report.memory, "peak_memory_bytes"),
}


def main(patterns: tuple[str, ...]) -> None:
    """Rewrite every table in every document whose name matches one of the patterns; all without any."""

    def table(match: re.Match[str]) -> str:
        if patterns and not any(fnmatch.fnmatch(match[1], pattern) for pattern in patterns):
            return match[0]
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", table, path.read_text(), flags=re.DOTALL))
        print(f"{path.relative_to(ROOT)} is up to date")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
