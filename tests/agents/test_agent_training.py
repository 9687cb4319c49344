import json

import pytest
import torch
from corridor import LENGTH, OPEN, RIGHT, Corridor
from safetensors.torch import save_file

from worldmodel.agents.actor_critic import ActorCritic, AgentConfig
from worldmodel.agents.checkpoint import load_actor_critic, save_actor_critic
from worldmodel.agents.training import AgentTrainer
from worldmodel.errors import UserError
from worldmodel.specs import ActionSpec

ACTION = ActionSpec(kind="discrete", sizes=(3,))
CONFIG = AgentConfig(width=32, dreams=64, learning_rate=3e-3)
STARTS = Corridor().start(torch.arange(LENGTH).repeat(20))


def new_trainer(out=None, world=None, seed=0, resume=False, config=CONFIG):
    torch.manual_seed(0)
    agent = ActorCritic(Corridor.feature_width, ACTION, config)
    return AgentTrainer(world or Corridor(), agent, out, seed=seed, resume=resume)


def preferred(agent):
    return agent.policy(torch.eye(LENGTH)).mode().tolist()


def test_solves_the_corridor_from_a_sparse_reward():
    trainer = new_trainer()
    trainer.train(STARTS, updates=150)
    assert preferred(trainer.agent) == [RIGHT] * (LENGTH - 1) + [OPEN]
    values = trainer.agent.value(torch.eye(LENGTH)).detach()
    assert (values.diff() > 0).all() and values[-1] > 0.8  # nearer to the box is worth more: the discount is felt


def test_does_not_solve_it_when_rewards_come_one_step_late():
    trainer = new_trainer(world=Corridor(delay=True))
    trainer.train(STARTS, updates=150)
    assert preferred(trainer.agent) != [RIGHT] * (LENGTH - 1) + [OPEN]
    assert trainer.agent.value(torch.eye(LENGTH)).abs().max() < 0.1


def same_weights(a, b):
    return all(torch.equal(v, b.state_dict()[n]) for n, v in a.state_dict().items())


def test_same_seed_same_bits():
    runs = [new_trainer(seed=seed) for seed in (3, 3, 4)]
    for trainer in runs:
        trainer.train(STARTS, updates=5)
    assert same_weights(runs[0].agent, runs[1].agent)
    assert not same_weights(runs[0].agent, runs[2].agent)


def test_resuming_is_going_on(tmp_path):
    whole = new_trainer(tmp_path / "whole")
    whole.train(STARTS, updates=7)
    new_trainer(tmp_path / "parts").train(STARTS, updates=3)
    rest = new_trainer(tmp_path / "parts", seed=99, resume=True)
    assert int(rest.agent.updates) == 3
    rest.train(STARTS, updates=4)
    assert same_weights(whole.agent, rest.agent)
    assert rest.dreamed == whole.dreamed == 7 * CONFIG.dreams * CONFIG.horizon
    assert same_weights(whole.agent, load_actor_critic(tmp_path / "parts"))
    assert list((tmp_path / "whole" / "tensorboard").iterdir())


def test_training_stops_when_the_minutes_are_over():
    trainer = new_trainer()
    trainer.train(STARTS, minutes=0.005, updates=10_000)
    assert 0 < int(trainer.agent.updates) < 1000


class BrokenCorridor(Corridor):
    def imagine(self, state, action):
        state, out = super().imagine(state, action)
        out.reward_mean[3] = float("nan")
        return state, out


def test_nan_stops_with_a_sentence_and_leaves_the_checkpoint(tmp_path):
    new_trainer(tmp_path).train(STARTS, updates=2)
    saved = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    trainer = new_trainer(tmp_path, world=BrokenCorridor(), resume=True)
    before = {n: v.clone() for n, v in trainer.agent.actor.state_dict().items()}
    with pytest.raises(UserError, match="not finite at update 2"):
        trainer.train(STARTS, updates=2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == saved
    assert all(torch.equal(v, before[n]) for n, v in trainer.agent.actor.state_dict().items())


def test_bad_calls_are_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="how long"):
        new_trainer().train(STARTS)
    with pytest.raises(UserError, match="no start state"):
        new_trainer().train(STARTS[torch.arange(0)], updates=1)
    with pytest.raises(UserError, match="run folder"):
        new_trainer(resume=True)
    with pytest.raises(UserError, match="does not exist"):
        new_trainer(tmp_path, resume=True)


def test_checkpoint_remembers_config_and_kind_of_action(tmp_path):
    agent = ActorCritic(6, ActionSpec(kind="multi_discrete", sizes=(2, 3)), CONFIG)
    save_actor_critic(tmp_path, agent)
    loaded = load_actor_critic(tmp_path)
    assert (loaded.config, loaded.action, loaded.features) == (agent.config, agent.action, 6)
    assert same_weights(agent, loaded)
    first = (tmp_path / "agent.safetensors").read_bytes()
    save_actor_critic(tmp_path, loaded)
    assert (tmp_path / "agent.safetensors").read_bytes() == first


def test_damaged_files_and_other_configs_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist: train an agent"):
        load_actor_critic(tmp_path)
    new_trainer(tmp_path).train(STARTS, updates=1)
    with pytest.raises(UserError, match="another width, learning_rate"):
        new_trainer(tmp_path, resume=True, config=AgentConfig(dreams=64))
    for name, read in [
        ("agent.safetensors", lambda: load_actor_critic(tmp_path)),
        ("agent_trainer.pt", lambda: new_trainer(tmp_path, resume=True)),
    ]:
        content = (tmp_path / name).read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"not a checkpoint at all"):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match=f"{name} cannot be read"):
                read()


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    agent = ActorCritic(6, ACTION, CONFIG)
    description = {"format_version": 2, "config": agent.config.to_dict(), "features": 6, "action": {"sizes": [3]}}
    save_file(agent.state_dict(), tmp_path / "agent.safetensors", {"agent": json.dumps(description)})
    with pytest.raises(UserError, match="format version 2"):
        load_actor_critic(tmp_path)
