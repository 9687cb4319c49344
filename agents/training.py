"""The agent's training loop: start states of real data, dreams from them, one gradient step a dream.

The world model stands still here. Nothing but the agent's few small networks is trained, and no real step is taken.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.agents.actor_critic import ActorCritic, actor_loss, critic_loss
from worldmodel.agents.checkpoint import load_trainer, save_actor_critic, save_trainer
from worldmodel.agents.imagination import Dream, Imaginer, imagine
from worldmodel.agents.returns import lambda_returns, step_weights
from worldmodel.errors import UserError
from worldmodel.interrupt import uninterrupted


class DreamStarts(Protocol):
    """What the trainer needs of a `DreamState`: rows can be picked and given new noise."""

    @property
    def batch_size(self) -> int: ...
    @property
    def feature(self) -> Tensor: ...
    def __getitem__(self, rows: Tensor) -> Self: ...
    def reseed(self, seeds: Tensor) -> Self: ...


class AgentTrainer:
    """Trains an `ActorCritic` inside a world model.

    Args:
        model: the world model, in evaluation mode.
        agent: what to train; it is changed in place.
        out: run folder for `agent.safetensors`, `agent_trainer.pt` and `tensorboard/`; None writes nothing.
        seed: everything by chance follows from it: rows, dreams and actions.
        resume: go on from the files in `out`, exactly as if there had been no break.
        checkpoint_seconds: at most so much is lost when the process dies.
    """

    def __init__(
        self,
        model: Imaginer[Any],
        agent: ActorCritic,
        out: Path | str | None = None,
        *,
        seed: int = 0,
        resume: bool = False,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        self.model, self.agent = model, agent
        self.out = None if out is None else Path(out)
        self.checkpoint_seconds = checkpoint_seconds
        # Chance lives on the CPU, so that a seed means the same dreams on every device.
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(
            [p for p in agent.parameters() if p.requires_grad], lr=agent.config.learning_rate, eps=1e-6
        )
        self.dreamed = 0  # steps
        if resume:
            if self.out is None:
                raise UserError("an agent can only be resumed from a run folder: pass out")
            self._restore(load_trainer(self.out, agent))

    def train(
        self, starts: DreamStarts, *, updates: int | None = None, minutes: float | None = None
    ) -> dict[str, float]:
        """Runs further updates until their number or the minutes are used up, whichever comes first.

        Args:
            starts: a `DreamState` of thousands of rows, burnt in on real data, none of them terminal.
            updates: how many more.
            minutes: for how long.

        Returns:
            The last update's figures.

        Raises:
            UserError: a loss or gradient is not finite. The checkpoint of before is intact.
        """
        if updates is None and minutes is None:
            raise UserError("say how long the agent shall train: updates, minutes or both")
        if starts.batch_size == 0:
            raise UserError("there is no start state to dream from: collect longer episodes, or choose more contexts")
        ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        saved = time.monotonic()
        metrics: dict[str, float] = {}
        done = 0
        writer = self._writer()
        bar = tqdm(total=updates, desc="agent", unit="update", disable=None)
        try:
            while done < (updates if updates is not None else float("inf")) and time.monotonic() < ends:
                with uninterrupted():
                    metrics = self.update(starts)
                done += 1
                bar.update()
                shown = {"dream return": f"{metrics['return']:.3f}", "ended": f"{metrics['ended']:.0%}"}
                bar.set_postfix(shown | {"entropy": f"{metrics['entropy']:.2f}"})
                if writer is not None:
                    for name, value in metrics.items():
                        writer.add_scalar(f"agent/{name}", value, int(self.agent.updates))
                if time.monotonic() - saved > self.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
            self.save()
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        return metrics

    def update(self, starts: DreamStarts) -> dict[str, float]:
        """Dreams once from `config.dreams` random start states and takes one gradient step."""
        began = time.perf_counter()
        config = self.agent.config
        rows = torch.randint(starts.batch_size, (config.dreams,), generator=self.generator)
        seeds = torch.randint(2**62, (2, config.dreams), generator=self.generator)
        rows, seeds = rows.to(starts.feature.device), seeds.to(starts.feature.device)
        dream = imagine(self.model, self.agent, starts[rows].reseed(seeds[0]), config.horizon, seeds[1])
        dreamed = time.perf_counter()

        loss, metrics = agent_loss(self.agent, dream)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.agent.parameters(), config.clip)
        if not torch.isfinite(norm + loss.detach()):
            raise UserError(
                f"the agent's loss or gradient is not finite at update {int(self.agent.updates)}: the dreamed rewards "
                "or features are broken, or the learning rate is too high; the last checkpoint is intact"
            )
        self.optimizer.step()
        self.agent.after_update()

        self.dreamed += config.dreams * config.horizon
        metrics |= {"loss": loss.item(), "gradient_norm": norm.item(), "dreamed_steps": float(self.dreamed)}
        ended = time.perf_counter()
        return metrics | {"dream_seconds": dreamed - began, "learn_seconds": ended - dreamed}

    def save(self) -> None:
        """Writes the agent and all that is needed to go on."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        optimizer, generator = self.optimizer.state_dict(), self.generator.get_state()
        state = {"optimizer": optimizer, "generator": generator, "dreamed": self.dreamed}
        save_trainer(self.out, self.agent, state)
        save_actor_critic(self.out, self.agent)

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.dreamed = state["dreamed"]

    def _writer(self) -> Any:
        if self.out is None:
            return None
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # What a killed run had drawn beyond its last checkpoint is drawn again.
        return SummaryWriter(str(self.out / "tensorboard" / "agent"), purge_step=int(self.agent.updates) + 1)


def agent_loss(agent: ActorCritic, dream: Dream) -> tuple[Tensor, dict[str, float]]:
    """The loss of actor and critic on one batch of dreams, and figures to watch. Moves the running return scale.

    Returns:
        `()` the loss with gradient, and the figures.
    """
    config = agent.config
    before = dream.features[:-1]  # the states that were acted in
    logits = agent.critic(before)
    with torch.no_grad():
        values = torch.cat([agent.two_hot.mean(logits), agent.value(dream.features[-1:])])
        slow_values = agent.two_hot.mean(agent.slow_critic(before))
        discounts = config.discount * dream.continues
        returns = lambda_returns(dream.rewards, discounts, values, config.lam)
        weight = step_weights(discounts)
        agent.track_returns(returns, weight)
        advantage = (returns - values[:-1]) / agent.return_scale()
    policy = agent.policy(before)
    entropy = policy.entropy()
    actor = actor_loss(policy.log_prob(dream.actions), entropy, advantage, weight, config.entropy)
    critic = critic_loss(agent.two_hot, logits, returns, slow_values, weight, config.slow_weight)
    figures = {
        "return": returns[0].mean(),
        "reward": (weight * dream.rewards).sum(0).mean(),
        "ended": 1 - dream.continues.prod(0).mean(),
        "value": values[0].mean(),
        "entropy": entropy.mean(),
        "actor_loss": actor,
        "critic_loss": critic,
        "return_scale": agent.return_scale(),
    }
    stacked = torch.stack([f.detach() for f in figures.values()]).tolist()  # one host sync, not eight
    return actor + critic, dict(zip(figures, stacked))
