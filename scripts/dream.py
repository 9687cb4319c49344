"""`worldmodel dream`: an agent trained inside the world model's imagination, without one more real step."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.errors import UserError
from worldmodel.scripts.options import (
    Common,
    MaybeFloat,
    MaybeInt,
    MaybePath,
    begun_seed,
    choose_device,
    given,
    require_positive,
    require_run,
)
from worldmodel.scripts.train import read_record

if TYPE_CHECKING:
    from worldmodel.agents.actor_critic import AgentConfig
    from worldmodel.envs.segments import FrameTable
    from worldmodel.model import WorldModel
    from worldmodel.state import DreamState

RECORD_FILE = "dreaming.json"  # how the agent was begun: what --resume goes on with
DEFAULT_MINUTES = 5.0
DEFAULT_STARTS = 1024
BURN_IN_ROWS = 256  # contexts burnt in side by side


@dataclass(kw_only=True)
class Dream(Common):
    """Train an agent in a run's world model.

    Dreams begin at moments of the episodes that the model was trained on. Ctrl-C saves; --resume goes on exactly where
    it stopped, and options that are not given again stay as they were.

    The agent's critic can say values between -147 and 147 only, and a value is a sum of discounted rewards. Where an
    environment pays more than that (Pendulum does), take a lower --discount, or record smaller rewards.
    """

    run: Path
    """The run folder, with a trained world model; the agent is written into it."""
    data: MaybePath = None
    """Episodes whose moments dreams begin at; those that the run was trained on if not given."""
    updates: MaybeInt = None
    """Stop after so many updates, counted from the beginning."""
    minutes: MaybeFloat = None
    """Stop after so many minutes of this call; 5 if --updates is not given either."""
    resume: bool = False
    """Go on with the run's agent."""
    starts: MaybeInt = None
    """Moments to begin at, half of them beginnings of episodes; 1024 if not given."""
    dreams: MaybeInt = None
    """Dreams side by side in an update; 256 if not given."""
    horizon: MaybeInt = None
    """Steps of a dream; 15 if not given."""
    learning_rate: MaybeFloat = None
    """1e-3 if not given."""
    entropy: MaybeFloat = None
    """Weight of the entropy bonus; 3e-4 if not given."""
    discount: MaybeFloat = None
    """Discount a step; 0.99 if not given. Lower it where returns leave what the critic can say, see above."""


def run(args: Dream) -> None:
    """Train the agent, and say where it is."""
    require_positive(args, "updates", "minutes", "starts", "dreams", "horizon", "learning_rate")
    require_run(args.run)
    updates = train_agent(args)
    print(
        f"{args.run} holds an agent after {updates} updates.\nNext: worldmodel evaluate --run {args.run} --episodes 100"
    )


def go_on(args: Dream) -> str:
    """What to do after Ctrl-C."""
    if not (args.run / "agent_trainer.pt").exists():
        return "Nothing was learned yet: the same command begins again."
    return f"The agent in {args.run} is saved; give --resume to go on."


def train_agent(args: Dream) -> int:
    """Train as `args` say; returns how many updates the agent has now."""
    import torch

    from worldmodel.agents.actor_critic import ActorCritic
    from worldmodel.agents.checkpoint import AGENT_FILE, TRAINER_FILE
    from worldmodel.agents.training import AgentTrainer
    from worldmodel.checkpoint import load_model

    device = choose_device(args.device)
    begun = (args.run / TRAINER_FILE).exists()
    if not args.resume and (begun or (args.run / AGENT_FILE).exists()):
        raise UserError(f"{args.run} holds an agent already: give --resume to go on with it, or copy the run")
    if args.resume and not begun:
        raise UserError(f"{args.run} holds no agent that could be resumed: run without --resume")
    model = load_model(args.run, device)
    record = _read_record(args.run) if args.resume else {}
    seed = begun_seed(args, record, args.run)
    config = _agent_config(args, record)
    torch.manual_seed(seed)
    agent = ActorCritic(model.feature_width, model.config.action, config).to(device)
    trainer = AgentTrainer(model, agent, args.run, seed=seed, resume=args.resume)
    more = None if args.updates is None else args.updates - int(agent.updates)
    if more is None or more > 0:
        minutes = DEFAULT_MINUTES if more is None and args.minutes is None else args.minutes
        data = args.data or (args.run / record["data"] if record.get("data") else None)
        count = args.starts or record.get("starts", DEFAULT_STARTS)
        starts = start_states(model, args.run, data, count, seed, config)
        _write_record(args.run, seed=seed, data=data, starts=count, config=config.to_dict())
        try:
            trainer.train(starts, updates=more, minutes=minutes)
        except KeyboardInterrupt:
            trainer.save()
            raise
    return int(agent.updates)


def start_states(
    model: WorldModel, run: Path, data: Path | None, count: int, seed: int, config: AgentConfig
) -> DreamState:
    """States of real moments, one a row. Warns where more was paid after such moments than the agent can value.

    Args:
        model: of the run.
        run: its folder.
        data: episodes to draw from; None takes those that the run was trained on, or, where they are gone, the few
            contexts that every run carries.
        count: moments.
        seed: of the choice.
        config: of the agent.
    """
    from worldmodel.checkpoint import load_environment
    from worldmodel.envs.contexts import burn_in, choose_contexts, load_contexts
    from worldmodel.envs.segments import FrameTable
    from worldmodel.envs.starts import CONTEXTS_FILE
    from worldmodel.envs.store import EpisodeStore
    from worldmodel.state import DreamState

    recorded = read_record(run).get("data")
    folder = data or (run / recorded if recorded else None)
    if folder is not None and (data or (folder / "index.json").exists()):
        store, environment = EpisodeStore.open(folder), load_environment(run)
        for space in ("observation_space", "action_space"):
            if store.environment[space] != environment.get(space):
                raise UserError(
                    f"{folder} has another {space} than the run {run}: dream from episodes of its environment"
                )
        table = FrameTable.from_store(store)
        if (largest := largest_return(table, config.discount)) > config.largest_value:
            warnings.warn(
                f"after some recorded moments the discounted rewards come to {largest:.0f} in size, but the agent's "
                f"critic can say no value beyond {config.largest_value:.0f}: take a lower --discount than "
                f"{config.discount:g}, or record smaller rewards",
                stacklevel=2,
            )
        contexts = choose_contexts(table, count=count, seed=seed)
    else:
        contexts = load_contexts(run / CONTEXTS_FILE)
        if folder is not None:
            warnings.warn(
                f"the episodes in {folder} are gone, so dreams begin at the {len(contexts)} contexts of the run only",
                stacklevel=2,
            )
    parts = range(0, len(contexts), BURN_IN_ROWS)
    states = [burn_in(model, contexts[i : i + BURN_IN_ROWS], seed=seed + i)[0] for i in parts]
    return DreamState.cat(states)


def largest_return(table: FrameTable, discount: float) -> float:
    """The largest size of a discounted return, from any moment of the episodes to the end of its own."""
    largest = following = 0.0
    for reward, first in zip(table.reward[::-1].tolist(), table.first[::-1].tolist()):
        following = 0.0 if first else reward + discount * following  # from the frame before this one on
        largest = max(largest, abs(following))
    return largest


def _read_record(run: Path) -> dict[str, Any]:
    """What `dreaming.json` says; nothing if there is none, as with older agents.

    Raises:
        UserError: it is damaged.
    """
    from worldmodel.agents.actor_critic import AgentConfig

    path = run / RECORD_FILE
    try:
        content = json.loads(path.read_text())
        data = None if content["data"] is None else str(content["data"])
        numbers = {name: int(content[name]) for name in ("seed", "starts")}
        return {**numbers, "data": data, "config": AgentConfig.from_dict(content["config"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): delete it, and give the options of dreaming again") from error


def _write_record(run: Path, *, data: Path | None, **begun: Any) -> None:
    from worldmodel.checkpoint import write_atomically

    # Relative, so that a run and its data can be moved together.
    content = {"format_version": 1, "data": None if data is None else os.path.relpath(data, run), **begun}
    write_atomically(run / RECORD_FILE, json.dumps(content, indent=1).encode())


def _agent_config(args: Dream, record: dict[str, Any]) -> AgentConfig:
    """The resumed agent's config, or the usual one, with the options that are given."""
    from worldmodel.agents.actor_critic import AgentConfig
    from worldmodel.agents.checkpoint import AGENT_FILE, load_actor_critic

    if not args.resume:
        config = AgentConfig()
    elif "config" in record:
        config = record["config"]
    else:
        known = (args.run / AGENT_FILE).exists()
        config = load_actor_critic(args.run).config if known else AgentConfig()
    try:
        return replace(config, **given(args, AgentConfig))
    except ValueError as error:
        raise UserError(f"no agent can be trained so: {error}") from error
