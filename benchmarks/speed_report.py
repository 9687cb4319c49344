"""The tables of speed, growth, threads and memory from what `speed.py` measured, for the terminal and for documents."""

from __future__ import annotations

from typing import Any

# The latent rate's last goal is DreamerV3's own, measured in the same run.
GOALS = {
    "trained": (600,),
    "trained, every frame distinct": (300,),
    "dreamed with pixels": (400,),
    "latent dream steps": (3_000, 10_000),
}
DREAMER = "DreamerV3 {size} (sheeprl)"
# Peers at their default Atari configuration, random weights, one thread, 64x64x3; the agent's update in DreamerV3's.
PEERS = {
    "DIAMOND": (3.4, 2.3, None),
    "IRIS": (4.4, 13, None),
    "Delta-IRIS": (5.5, 21, None),
    DREAMER.format(size="1M"): (122, None, 16_900),
    DREAMER.format(size="XS"): (95, None, 7_100),
}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Rows as a table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def report(result: dict[str, Any]) -> str:
    """The rates beside their goals, sheeprl's DreamerV3 if it was measured with them, and the peers that were not."""
    peer = result.get("sheeprl")
    gflops = f"{result['matmul_gflops_per_cpu_second']:.0f} GFLOP/s"
    if peer:
        gflops += f" ({' and '.join(f'{rate:.0f}' for rate in peer['matmul_gflops_per_cpu_second'])} beside DreamerV3)"
    heading = (
        f"{result['environment']}, {result['parameters'] / 1e6:.2f}M parameters, one thread, per CPU-second; "
        f"a 1024^3 product runs at {gflops}; {_revision(result)}"
    )
    rows = _rates(result) + (_dreamer(peer) if peer else [])
    header = ["", "rate", "goal", "chunks a frame", "distinct frames", "exact@15, changed"]
    measured = [DREAMER.format(size=size) for size in peer["sizes"]] if peer else []
    others = [
        [name, *("-" if value is None else f"{value:,g}" for value in row)]
        for name, row in PEERS.items()
        if name not in measured
    ]
    between = "Peers at 64x64 with random weights, measured on another machine (73 GFLOP/s in the same product):"
    peers = markdown(["", "trained", "dreamed with pixels", "latent dream steps"], others)
    return "\n\n".join((heading, markdown(header, rows), between, peers))


def growth(result: dict[str, Any]) -> str:
    """What a frame or a step costs, by what it may grow with."""
    grown, chunks = result["growth"], result["growth"]["chunks"]
    training = "training on a frame, all of them distinct"
    pixels = "a dreamed step with its picture, 16 dreams"
    tables = (
        _grown("frames a row", {training: grown["length"]}),
        _grown("steps dreamed before", {pixels: grown["dreamed"]}),
        _grown("dreams at once", {"a latent step": grown["batch"]}),
        _grown(
            "chunks a frame, random weights",
            {
                what: {n: costs[name] for n, costs in chunks.items()}
                for name, what in (
                    ("trained", training),
                    ("dreamed with pixels", pixels),
                    ("latent dream steps", "a latent step, 256 dreams"),
                )
            },
        ),
    )
    return "\n\n".join((f"CPU time of one thread in microseconds; {_revision(result)}:", *tables))


def floor(result: dict[str, Any]) -> str:
    """What each work takes beside its matrix products at full rate, and where the time goes."""
    rows = []
    for name, entry in result["floor"].items():
        shares = ", ".join(f"{operation} {share:.0%}" for operation, share in entry["profile"].items())
        times = [f"{entry['gflop']:.2f}", f"{entry['floor_ms']:.1f}", f"{entry['measured_ms']:.1f}"]
        rows.append([name, *times, f"{entry['measured_ms'] / entry['floor_ms']:.1f}x", shares])
    header = ["", "GFLOP in products", "floor, ms", "measured, ms", "", "where the time goes"]
    return f"One thread, CPU time; {_revision(result)}:\n\n{markdown(header, rows)}"


def acting(result: dict[str, Any]) -> str:
    """What it costs to look at 16 environments beside what it costs to step them."""
    times = result["acting"]
    return (
        f"16 x {result['environment']}: stepping the environments takes {times['environments_ms']:.1f} ms, "
        f"`observe` {times['observe_ms']:.1f} ms (one thread, CPU time)."
    )


def threads(result: dict[str, Any]) -> str:
    """One thread against two on the wall."""
    rows = [
        [name, f"{rates['1']:,.0f}", f"{rates['2']:,.0f}", f"{rates['2'] / rates['1']:.2f}x"]
        for name, rates in result["threads"].items()
    ]
    load = result["load_before_threads"]
    heading = f"By second on the wall, on {result['machine']['cores']} cores with a load of {load:.1f} before:"
    return f"{heading}\n\n{markdown(['', 'one thread', 'two threads', 'gain'], rows)}"


def memory(result: dict[str, Any]) -> str:
    """Peak memory, each in a process of its own."""
    peaks = result["peak_memory_bytes"]
    rows = [[name, f"{peak / 2**20:,.0f}"] for name, peak in peaks.items()]
    return markdown(["", "peak memory, MiB"], rows)


def everything(result: dict[str, Any]) -> str:
    """All tables that there are figures for."""
    tables = {"acting": acting, "floor": floor, "growth": growth, "threads": threads, "peak_memory_bytes": memory}
    return "\n\n".join([report(result), *(table(result) for name, table in tables.items() if name in result)])


def _rates(result: dict[str, Any]) -> list[list[str]]:
    chunks, exact = result["chunks_a_frame"].get("dream"), result["exact_at_15"]["changed"]
    peer, rows = result.get("sheeprl"), []
    for name, entry in result["rates"].items():
        goals = [f"{goal:,}" for goal in GOALS.get(name, ())]
        if name == "latent dream steps":
            rate = peer and peer["sizes"]["1M"]["imagined_steps_per_cpu_second"]["imagine"]
            goals.append(f"DreamerV3's {rate:,.0f}" if rate else "DreamerV3's")
        distinct = f"{entry['distinct_share']:.0%}" if "distinct_share" in entry else "-"
        shown = f"{chunks:.1f}" if chunks else "-"
        true = "-" if exact is None else f"{exact:.1%}"
        rows.append([name, f"{entry['per_cpu_second']:,.0f}", ", then ".join(goals) or "-", shown, distinct, true])
    return rows


def _dreamer(peer: dict[str, Any]) -> list[list[str]]:
    rows = []
    for size, entry in peer["sizes"].items():
        rates = entry["imagined_steps_per_cpu_second"]
        for what, rate in (
            ("trained, with the agent's update", entry["trained_frames_per_cpu_second"]),
            ("latent dream steps, with actor and critic", rates["imagine"]),
            ("latent dream steps", rates["latent_and_heads"]),
        ):
            rows.append([f"{DREAMER.format(size=size)}: {what}", f"{rate:,.0f}", *["-"] * 4])
    return rows


def _grown(by: str, costs: dict[str, dict[str, float]]) -> str:
    numbers = [f"{int(n):,}" for n in next(iter(costs.values()))]
    rows = [[what, *(f"{1e6 * seconds:,.0f}" for seconds in cost.values())] for what, cost in costs.items()]
    return markdown([by, *numbers], rows)


def _revision(result: dict[str, Any]) -> str:
    return f"commit {result['commit'][:8] or 'unknown'}{' with changes' if result.get('dirty') else ''}"
