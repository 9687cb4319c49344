"""`worldmodel demo`: the whole way, from random play to an agent that learned only in a dream, and pictures of it.

The stages are those that the other commands run one by one. Each is skipped when it is done, so a demo that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.errors import UserError
from worldmodel.scripts.dream import Dream, train_agent
from worldmodel.scripts.evaluate import Evaluate, dream_like, evaluate, exact, headline, table
from worldmodel.scripts.options import Common, choose_device, require_out_folder, require_positive
from worldmodel.scripts.progress import Progress
from worldmodel.scripts.train import Train, train

if TYPE_CHECKING:
    from worldmodel.envs.rollout import Episode

PRODUCTS = {
    "collect": "data/index.json",
    "train": "world_model.safetensors",
    "dream": "agent.safetensors",
    "evaluate": "evaluation.json",
    "report": "summary.json",
}
LEAST_MINUTES = 0.01  # so that an interrupted stage writes its product even if its time was up
OPEN_LOOP_STEPS = 15  # of the film strips
SHOWN_EPISODES = 4  # of the agent, in the video


@dataclass(kw_only=True)
class Demo(Common):
    """Show the whole way in one go: collect, train a world model, train an agent in its dreams, see it succeed.

    Interrupted, the same command goes on where it stopped.
    """

    out: Path = Path("runs/demo")
    """The run folder; everything goes there."""
    env: str = "MiniGrid-Empty-Random-6x6-v0"
    """Any Gymnasium id. The minutes below are enough for the default one on two cores."""
    steps: int = 10_000
    """Steps of the random player: all that is ever seen of the real environment before the evaluation."""
    train_minutes: float = 3.4
    """How long the world model is trained."""
    dream_minutes: float = 1.2
    """How long the agent is trained inside it."""
    episodes: int = 100
    """Episodes of each kind in the evaluation."""
    windows: int = 256
    """Places at which dreamed frames are compared with real ones, at each number of steps."""


def run(args: Demo) -> None:
    """Go all the way."""
    require_positive(args, "steps", "train_minutes", "dream_minutes", "episodes", "windows")
    require_out_folder("--out", args.out)
    from worldmodel.checkpoint import write_atomically
    from worldmodel.envs.collect import collect
    from worldmodel.envs.make import spec_of
    from worldmodel.envs.store import EpisodeStore

    spec_of(args.env)  # what cannot be made is refused before a folder is
    progress = Progress(args.out, PRODUCTS, {"env": args.env, "seed": args.seed, "steps": args.steps})
    common: dict[str, Any] = {"seed": args.seed, "device": args.device}
    data, report = args.out / "data", args.out / "evaluation.json"
    with progress.stage("collect", f"a random player takes {args.steps} steps in {args.env}") as minutes:
        if minutes is not None:
            collect(args.env, data, args.steps, seed=args.seed)
    with progress.stage("train", f"an H-Net world model learns from them, {args.train_minutes:g} minutes") as minutes:
        if minutes is not None:
            left = max(LEAST_MINUTES, args.train_minutes - minutes)
            resume = (args.out / "trainer.pt").exists()
            train(Train(data=data, out=args.out, minutes=left, resume=resume, **common), EpisodeStore.open(data))
    with progress.stage("dream", f"an agent learns inside its dreams, {args.dream_minutes:g} minutes") as minutes:
        if minutes is not None:
            left = max(LEAST_MINUTES, args.dream_minutes - minutes)
            resume = (args.out / "agent_trainer.pt").exists()
            train_agent(Dream(run=args.out, minutes=left, resume=resume, **common))
    with progress.stage("evaluate", f"{args.episodes} fresh episodes, played by both and dreamed") as minutes:
        if minutes is not None:
            measured = evaluate(Evaluate(run=args.out, episodes=args.episodes, windows=args.windows, **common))
            write_atomically(report, json.dumps(measured, indent=1).encode())
    try:
        measured = json.loads(report.read_text())
    except ValueError as error:
        raise UserError(f"{report} is damaged ({error}): delete {args.out} and run the demo again") from error
    with progress.stage("report", f"pictures and a video go to {args.out / 'report'}") as minutes:
        if minutes is not None:
            draw(args, measured)
            # Last, because it says that everything is there.
            summary = summarise(args, measured, EpisodeStore.open(data).steps, progress)
            write_atomically(args.out / "summary.json", json.dumps(summary, indent=1).encode())
    truth = [headline(measured["fidelity"])] if "fidelity" in measured else []
    print("\n" + "\n\n".join([table(measured), *truth, farewell(args)]))


def go_on(args: Demo) -> str:
    """What to do after Ctrl-C."""
    return "The same command goes on where it stopped."


def draw(args: Demo, measured: dict[str, Any]) -> None:
    """The pictures of the report. All of them show fresh episodes, none from the training data."""
    from worldmodel.agents.policy import Agent
    from worldmodel.checkpoint import load_environment
    from worldmodel.envs.make import make_vector_env
    from worldmodel.envs.pictures import draw_dreams
    from worldmodel.envs.rollout import play_limit, rollout
    from worldmodel.envs.test_set import load_test_set
    from worldmodel.scripts.figures import learning_curves, play_video

    folder, environment, device = args.out / "report", load_environment(args.out), choose_device(args.device)
    folder.mkdir(parents=True, exist_ok=True)
    learning_curves(args.out, folder / "learning_curves.png")
    agent = Agent.load(args.out, device, seed=args.seed)
    spec = agent.model.config.observation
    if spec.shown is None:
        print("observations are no pictures, so there are none of them")
        return
    if "fidelity" in measured:
        draw_dreams(agent.model, load_test_set(environment), folder, steps=OPEN_LOOP_STEPS, seed=args.seed)
    seeds = measured["agent_real"]["seeds"][:SHOWN_EPISODES]
    venvs = make_vector_env(environment, len(seeds)), dream_like(args.out, environment, seeds, device, len(seeds))
    limit = play_limit(environment)
    real, dreamed = ([*rollout(venv, agent, episodes=len(seeds), seeds=seeds, limit=limit)] for venv in venvs)
    play_video(_in_order(real, seeds), _in_order(dreamed, seeds), spec, folder / "real_and_dream.mp4")


def _in_order(episodes: list[Episode], seeds: list[int]) -> list[Episode]:
    """Episodes come as they end; the two sides of the video want them by seed."""
    found = {episode.seed: episode for episode in episodes}
    return [found[seed] for seed in seeds]


def summarise(args: Demo, measured: dict[str, Any], real_steps: int, progress: Progress) -> dict[str, Any]:
    """What `summary.json` holds."""
    import torch

    agent, random, dream = (measured[key] for key in ("agent_real", "random_real", "agent_dream"))
    minutes = progress.minutes
    return {
        "format_version": 1,
        "env": args.env,
        "seed": args.seed,
        "real_steps": real_steps,
        "minutes": round(sum(minutes.values()), 2),
        "agent_success": agent["success"],
        "agent_length": agent["mean_length"],
        "random_success": random["success"],
        "random_length": random["mean_length"],
        "dream_success": dream["success"],
        "dream_length": dream["mean_length"],
        "agent_return": agent["mean_return"],
        "random_return": random["mean_return"],
        "dream_return": dream["mean_return"],
        "dream_exact": exact(measured["fidelity"]) if "fidelity" in measured else {},
        "episodes": measured["episodes"],
        "stage_minutes": {name: round(value, 2) for name, value in minutes.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def farewell(args: Demo) -> str:
    """What to look at and what to type next."""
    from worldmodel.checkpoint import load_config

    shown = load_config(args.out).observation.shown
    mode, picture = "", ""
    if shown is not None and shown.kind == "image":  # other dreams have no render mode
        mode, picture = ', render_mode="rgb_array"', "\n  picture = env.render()"
    pictures = sorted(str(path) for path in (args.out / "report").iterdir())
    looks = "\n".join(f"  {path}" for path in pictures)
    return f"""Look at
{looks}
  tensorboard --logdir {args.out / "tensorboard"}
The figures are in {args.out / "summary.json"}. Step the dream yourself:
  import gymnasium, worldmodel
  env = gymnasium.make("worldmodel/Dream-v0", checkpoint="{args.out}"{mode})
  observation, info = env.reset(seed=0)
  observation, reward, terminated, truncated, info = env.step(env.action_space.sample()){picture}"""
