"""`worldmodel collect`: a real environment played into an episode store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.scripts.options import (
    Common,
    MaybeInt,
    MaybeNames,
    choose_device,
    require_out_folder,
    require_positive,
    require_run,
)


@dataclass(kw_only=True)
class Collect(Common):
    """Play an environment and keep every episode, bit for bit."""

    env: str
    """Any Gymnasium id, such as MiniGrid-DoorKey-5x5-v0 or CartPole-v1."""
    steps: int
    """Steps that the folder holds at the end; the same command goes on with a folder that holds fewer."""
    out: Path
    """Folder of the episodes."""
    policy: str = "random"
    """Who plays: random, or a run folder whose agent plays."""
    num_envs: int = 8
    """Environments that step together."""
    wrappers: MaybeNames = None
    """Wrappers by name, the innermost first (such as render resize64); MiniGrid gets its RGB partial view by itself."""
    max_episode_steps: MaybeInt = None
    """Time limit of an episode; the environment's own if not given."""


def run(args: Collect) -> None:
    """Collect, and say what was collected."""
    require_positive(args, "steps", "num_envs", "max_episode_steps")
    require_out_folder("--out", args.out)
    from worldmodel.envs.collect import collect
    from worldmodel.envs.make import spec_of

    spec = spec_of(args.env, wrappers=args.wrappers, max_episode_steps=args.max_episode_steps)
    policy = None if args.policy == "random" else _agent(args, spec)
    store = collect(spec, args.out, args.steps, policy=policy, num_envs=args.num_envs, seed=args.seed)
    returns = [entry["return"] for entry in store.index]
    success = sum(r > 0 for r in returns) / len(returns)
    mean = sum(returns) / len(returns)
    print(
        f"{args.out} holds {store.steps} steps in {len(store)} episodes, mean return {mean:.2f}, "
        f"{success:.0%} of them above 0.\nNext: worldmodel train --data {args.out} --out runs/NAME"
    )


def go_on(args: Collect) -> str:
    """What to do after Ctrl-C."""
    return f"Every finished episode is in {args.out}; the same command goes on from there."


def _agent(args: Collect, spec: dict[str, Any]) -> Any:
    from worldmodel.agents.policy import Agent
    from worldmodel.checkpoint import load_environment

    require_run(Path(args.policy))
    trained_in = load_environment(args.policy)
    for space in ("observation_space", "action_space"):
        if trained_in.get(space) != spec[space]:
            raise UserError(
                f"the agent of {args.policy} cannot play {args.env}: its {space} is {trained_in.get(space)}, "
                f"that of the environment {spec[space]}"
            )
    return Agent.load(args.policy, choose_device(args.device), seed=args.seed + _held(args.out))


def _held(out: Path) -> int:
    """Episodes that are there already: an agent that goes on must not repeat the chances it took before."""
    from worldmodel.envs.store import EpisodeStore

    return len(EpisodeStore.open(out)) if (out / "index.json").exists() else 0
