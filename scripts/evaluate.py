"""`worldmodel evaluate`: agent and random player in the real environment, the agent in the dream, and fidelity."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.scripts.options import (
    Common,
    MaybeFloat,
    MaybePath,
    choose_device,
    require_out_file,
    require_positive,
    require_run,
)
from worldmodel.scripts.table import aligned

EVALUATION_STREAM = 1  # of episode seeds; collecting takes stream 0, so these episodes are fresh
ROWS = {"agent_real": "agent, real", "random_real": "random, real", "agent_dream": "agent, dream"}


@dataclass(kw_only=True)
class Evaluate(Common):
    """Measure a run on episodes that nobody has seen: success, return and length, real and dreamed, and fidelity.

    The dreamed episodes begin at the first frames of the real ones and end at the same time limit; where the
    environment has none, both are cut off after 200 steps. Success means a return above 0.
    """

    run: Path
    """The run folder."""
    episodes: int = 200
    """Episodes of each kind."""
    json: MaybePath = None
    """Write all figures into this file, too."""
    play_only: bool = False
    """Leave out the fidelity of dreamed frames."""
    windows: int = 256
    """Places at which dreamed frames are compared, at each number of steps."""
    greedy: bool = False
    """The agent takes its most likely action in place of a sampled one."""
    num_envs: int = 32
    """Environments that step together."""
    realign: int = 0
    """Steps after which a dream encodes its own frame anew, again and again; 0 for never."""
    loops: MaybeFloat = None
    """How often the core of the model runs, if it has one; as often as in training on average if not given."""


def run(args: Evaluate) -> None:
    """Measure, print, and write."""
    require_positive(args, "episodes", "windows", "num_envs")
    if args.realign < 0:
        raise UserError(f"--realign must be a number of steps, or 0 for never, not {args.realign}")
    require_run(args.run)
    if args.json is not None:
        require_out_file("--json", args.json)
    report = evaluate(args)
    print(table(report))
    if "fidelity" in report:
        from worldmodel.envs.fidelity_table import fidelity_table

        print("\n" + fidelity_table(report["fidelity"]).rstrip())
    if "agent_real" not in report:
        print(f"\nThere is no agent in {args.run} yet. Next: worldmodel dream --run {args.run}")
    if args.json is not None:
        from worldmodel.checkpoint import write_atomically

        write_atomically(args.json, json.dumps(report, indent=1).encode())
        print(f"\nAll figures are in {args.json}.")


def go_on(args: Evaluate) -> str:
    """What to do after Ctrl-C."""
    return "Nothing was written; the same command measures again from the start."


def evaluate(args: Evaluate) -> dict[str, Any]:
    """Measure a run.

    Returns:
        Plain numbers, ready for JSON: `agent_real`, `random_real` and `agent_dream` as `Evaluation.to_dict` says,
        `return_gap` dream minus real, and `fidelity`; what needs an agent is absent where there is none, and so is,
        with a warning, a fidelity that cannot be measured.
    """
    from worldmodel.agents.checkpoint import AGENT_FILE
    from worldmodel.checkpoint import load_environment, load_model
    from worldmodel.envs.rollout import episode_seeds

    device, environment = choose_device(args.device), load_environment(args.run)
    model = load_model(args.run, device, loops=args.loops)
    seeds = list(itertools.islice(episode_seeds(args.seed, EVALUATION_STREAM), args.episodes))
    report: dict[str, Any] = {
        "format_version": 1,
        "command": " ".join(["worldmodel", *sys.argv[1:]]),
        "environment": environment.get("id"),
        "run": str(args.run),
        "seed": args.seed,
        "episodes": args.episodes,
        "realign": args.realign,
        "loops": args.loops,
    }
    report |= play(args, environment, seeds, device, with_agent=(args.run / AGENT_FILE).exists())
    if not args.play_only:
        from worldmodel.envs.fidelity import measure_fidelity
        from worldmodel.envs.test_set import load_test_set

        frames = training_frames(args.run)
        try:
            report["fidelity"] = measure_fidelity(
                model, load_test_set(environment), frames, windows=args.windows, seed=args.seed, realign=args.realign
            )
        except UserError as error:  # what was played must not be lost
            warnings.warn(f"the fidelity of dreamed frames is left out: {error}", stacklevel=2)
    return report


def training_frames(run: Path) -> Any:
    """The distinct frames that the run was trained on, for the vocabulary of tiles; None where they are gone."""
    from worldmodel.envs.segments import FrameTable
    from worldmodel.envs.store import EpisodeStore
    from worldmodel.scripts.train import read_record

    data = read_record(run).get("data")
    if data is None or not (run / data / "index.json").exists():
        return None
    return FrameTable.from_store(EpisodeStore.open(run / data)).frames


def play(
    args: Evaluate, environment: dict[str, Any], seeds: list[int], device: str, with_agent: bool
) -> dict[str, dict[str, Any]]:
    """The part of the report that is about playing."""
    from worldmodel.agents.evaluate import evaluate_policy
    from worldmodel.agents.policy import Agent
    from worldmodel.envs.make import make_vector_env
    from worldmodel.envs.random_policy import RandomPolicy
    from worldmodel.envs.rollout import play_limit

    venv, limit = make_vector_env(environment, min(args.num_envs, len(seeds))), play_limit(environment)
    try:
        players: dict[str, Any] = {"random_real": RandomPolicy(venv.single_action_space, seeds)}
        if with_agent:
            agent = Agent.load(args.run, device, greedy=args.greedy, seed=args.seed, loops=args.loops)
            players = {"agent_real": agent, **players}
        played = {
            name: evaluate_policy(venv, player, len(seeds), seeds, limit=limit, progress=ROWS[name]).to_dict()
            for name, player in players.items()
        }
    finally:
        venv.close()
    if not with_agent:
        return played
    dream = dream_like(args.run, environment, seeds, device, args.num_envs, args.realign, args.loops)
    played["agent_dream"] = evaluate_policy(dream, agent, len(seeds), seeds, progress=ROWS["agent_dream"]).to_dict()
    gap = ("success", "mean_return", "mean_length")
    played["return_gap"] = {name: played["agent_dream"][name] - played["agent_real"][name] for name in gap}
    return played


def dream_like(
    run: Path,
    environment: dict[str, Any],
    seeds: list[int],
    device: str,
    num_envs: int,
    realign: int = 0,
    loops: float | None = None,
) -> Any:
    """The run's dream with the real environment's time limit, beginning where the real episodes of `seeds` begin."""
    from gymnasium.vector import AutoresetMode

    from worldmodel.envs.dream_vector import DreamVectorEnv
    from worldmodel.scripts.same_starts import SameStarts, first_frames

    dream = DreamVectorEnv(
        min(num_envs, len(seeds)),
        run,
        horizon=environment.get("episode_limit"),
        autoreset_mode=AutoresetMode.DISABLED,
        device=device,
        realign=realign,
        loops=loops,
    )
    return SameStarts(dream, seeds, first_frames(environment, seeds))


def table(report: dict[str, Any]) -> str:
    """The playing part of a report, for the terminal."""
    rows = [["", "success", "return", "length"]]
    for key, name in ROWS.items():
        if key in report:
            e = report[key]
            rows.append([name, f"{e['success']:.1%}", f"{e['mean_return']:.3f}", f"{e['mean_length']:.1f}"])
    if "return_gap" in report:
        g = report["return_gap"]
        rows.append(["dream - real", f"{g['success']:+.1%}", f"{g['mean_return']:+.3f}", f"{g['mean_length']:+.1f}"])
    return f"{report['environment']}, {report['episodes']} episodes each, seed {report['seed']}\n\n{aligned(rows)}"


def exact(fidelity: dict[str, Any]) -> dict[str, float]:
    """Share of dreamed frames that are exact, by dreamed steps: on ground that the context showed, where that is known.

    Empty for observations that are not made of tiles, which are measured in decibels.
    """
    shares = {}
    for horizon, entry in fidelity["horizons"].items():
        classes = entry["frames"]["dream"]
        share = classes.get("seen", classes["all"]).get("exact")
        if share is not None:
            shares[horizon] = share
    return shares


def headline(fidelity: dict[str, Any]) -> str:
    """The dream's fidelity in one line."""
    if shares := exact(fidelity):
        parts = [f"{share:.0%} after {horizon}" for horizon, share in shares.items()]
        return f"Dreamed frames that are exact, on ground seen before: {', '.join(parts)} steps."
    parts = []
    for horizon, entry in fidelity["horizons"].items():
        if (psnr := entry["frames"]["dream"]["all"].get("psnr")) is not None:
            parts.append(f"{psnr:.1f} dB after {horizon}")
    return f"PSNR of dreamed frames: {', '.join(parts)} steps."
