"""How fast sheeprl's DreamerV3 is on one thread, with its own recipe, on random frames and random weights.

    ~/.cache/worldmodel/sheeprl/bin/python benchmarks/sheeprl_dreamer.py --json    # the environment of sheeprl_venv.py

A gradient step is sheeprl's whole `train()`: the world model on 16 rows of 64 frames of 64x64x3, 15 dreamed steps from
each of the 1,024 states, actor and critic. Imagination is timed alone too: as `imagine()` does it, with the actor at
each step and the heads of reward, end and value behind; with the heads of reward and end only, which is what
`WorldModel.imagine` of ours does; and the latent states alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
from importlib.metadata import version
from types import ModuleType
from typing import Any

import gymnasium
import hydra
import torch
from lightning import Fabric
from omegaconf import OmegaConf
from sheeprl.utils.metric import MetricAggregator
from sheeprl.utils.utils import dotdict
from timing import cpu_seconds, machine, matmul_rate
from torch import Tensor

ROWS, FRAMES, ACTIONS = 16, 64, 7
SIZES = {"1M": ("dreamer_v3_5", "dreamer_v3_5_1M"), "XS": ("dreamer_v3", "dreamer_v3_XS")}


def configure(experiment: str, algorithm: str) -> Any:
    """sheeprl's own configuration of an experiment, with the network of `algorithm`."""
    overrides = [f"exp={experiment}", f"algo={algorithm}", "env=gym", "metric.log_level=0"]
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        config = hydra.compose("config", overrides)
    parts = ("algo", "distribution", "fabric")
    plain = {part: OmegaConf.to_container(OmegaConf.select(config, part), resolve=True) for part in parts}
    return dotdict({**plain, "env": {"num_envs": 1, "screen_size": 64}})


def random_batch(config: Any) -> dict[str, Tensor]:
    """What the replay buffer hands to `train()`, time first."""
    context = config.algo.get("replay_context", 0)
    shape = (FRAMES + context, ROWS)
    batch = {
        "rgb": torch.randint(256, (*shape, 3, 64, 64), dtype=torch.uint8),
        "actions": torch.nn.functional.one_hot(torch.randint(ACTIONS, shape), ACTIONS).float(),
        "rewards": torch.rand(*shape, 1),
    }
    for name in ("terminated", "truncated", "is_first"):
        batch[name] = (torch.rand(*shape, 1) < 0.02).float()
    if context:  # the latent state that each row goes on from
        world_model = config.algo.world_model
        batch["deter"] = torch.randn(*shape, world_model.recurrent_model.recurrent_state_size).half()
        groups, classes = world_model.stochastic_size, world_model.discrete_size
        batch["stoch"] = torch.randint(classes, (*shape, groups), dtype=torch.uint8)
    return batch


def measure(size: str, steps: int) -> dict[str, Any]:
    """CPU-seconds of one size of the agent, the median of `steps` gradient steps after one that does not count."""
    config = configure(*SIZES[size])
    name = config.algo.name
    train = importlib.import_module(f"sheeprl.algos.{name}.{name}")
    space = gymnasium.spaces.Dict({"rgb": gymnasium.spaces.Box(0, 255, (3, 64, 64), "uint8")})
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    build = importlib.import_module(f"sheeprl.algos.{name}.agent").build_agent
    world_model, actor, critic, slow_critic, _ = build(fabric, (ACTIONS,), False, config, space)
    models = {"world_model": world_model, "actor": actor, "critic": critic}
    options = config.algo.actor.moments
    moments = train.Moments(options.decay, options.max, options.percentile.low, options.percentile.high)
    batch = random_batch(config)

    def optimizer(settings: Any, *trained: torch.nn.Module) -> Any:
        parameters = [p for module in trained for p in module.parameters()]
        return fabric.setup_optimizers(hydra.utils.instantiate(settings, params=parameters, _convert_="all"))

    arguments: tuple[Any, ...]
    if "optimizer" in config.algo:  # the revision published in Nature trains all three with one optimizer
        one = optimizer(config.algo.optimizer, *models.values())
        arguments = (fabric, config, *models.values(), slow_critic, one, moments, batch, None, (ACTIONS,))
    else:
        three = [optimizer(config.algo[part].optimizer, module) for part, module in models.items()]
        arguments = (fabric, *models.values(), slow_critic, *three, batch, None, config, False, (ACTIONS,), moments)

    call = remember_imagine(train)
    seconds = cpu_seconds(lambda: train.train(*arguments), steps)
    imagined = FRAMES * ROWS * config.algo.horizon
    rates = {"imagine": imagined / imagine_seconds(call, steps)}
    for what, heads in (("latent_and_heads", True), ("latent", False)):
        dream = roll_out(world_model, config, heads)
        rates[what] = imagined / cpu_seconds(dream, steps)
    return {
        "algorithm": SIZES[size][1],
        "parameters": {part: sum(p.numel() for p in module.parameters()) for part, module in models.items()},
        "gradient_steps": steps,
        "cpu_seconds_per_gradient_step": seconds,
        "trained_frames_per_cpu_second": FRAMES * ROWS / seconds,
        "imagined_steps_per_cpu_second": rates,
    }


def remember_imagine(train: ModuleType) -> dict[str, Any]:
    """Notes what `train()` calls its `imagine()` with, so that it can be called alone on the same states."""
    imagine, call = train.imagine, {}

    def noted(*args: Any, **kwargs: Any) -> Any:
        call.update(imagine=imagine, args=args, kwargs=kwargs)
        return imagine(*args, **kwargs)

    train.imagine = noted
    return call


@torch.no_grad()
def imagine_seconds(call: dict[str, Any], repeats: int) -> float:
    """CPU-seconds of `imagine()` alone."""
    return cpu_seconds(lambda: call["imagine"](*call["args"], **call["kwargs"]), repeats)


def roll_out(world_model: Any, config: Any, heads: bool) -> Any:
    """A dream of as many steps with given actions, without actor and critic."""
    size, horizon, rows = config.algo.world_model, config.algo.horizon, FRAMES * ROWS
    groups, classes = size.stochastic_size, size.discrete_size
    one_hot = torch.nn.functional.one_hot
    prior = one_hot(torch.randint(classes, (1, rows, groups)), classes).flatten(2).float()
    state = torch.randn(1, rows, size.recurrent_model.recurrent_state_size)
    actions = one_hot(torch.randint(ACTIONS, (horizon, 1, rows)), ACTIONS).float()

    @torch.no_grad()
    def dream() -> None:
        now, recurrent, latents = prior, state, []
        for action in actions:
            now, recurrent = world_model.rssm.imagination(now, recurrent, action)
            now = now.reshape(1, rows, groups * classes)
            latents.append(torch.cat((now, recurrent), -1))
        if heads:
            together = torch.cat(latents)
            world_model.reward_model(together)
            world_model.continue_model(together)

    return dream


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--steps", type=int, default=3, help="gradient steps of 1M; XS takes one")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    MetricAggregator.disabled = True
    before = matmul_rate(9)
    sizes = {size: measure(size, options.steps if size == "1M" else 1) for size in options.sizes}
    result = {
        "versions": {name: version(name) for name in ("sheeprl", "torch", "lightning")},
        "machine": machine(),
        "matmul_gflops_per_cpu_second": [before, matmul_rate(9)],
        "sizes": sizes,
    }
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
