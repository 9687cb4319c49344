import torch
from corridor import LENGTH, OPEN, RIGHT, Corridor
from small_run import fresh_agent, small_model

from worldmodel.agents.actions import action_distribution
from worldmodel.agents.imagination import action_noise, imagine
from worldmodel.envs.make import make_env, spec_of
from worldmodel.specs import ActionSpec


class Script:
    """Goes right, and opens at the last cell."""

    action = ActionSpec(kind="discrete", sizes=(3,))

    def policy(self, feature):
        last = feature[:, -1:]
        logits = torch.cat([torch.zeros_like(last), 1 - last, last], -1) * 100
        return action_distribution(self.action, logits)


def test_rows_of_a_dream_are_aligned():
    start = Corridor().start(torch.tensor([LENGTH - 3, LENGTH - 1]))
    dream = imagine(Corridor(), Script(), start, 4, torch.arange(2))
    assert dream.features.argmax(-1)[:3, 0].tolist() == [LENGTH - 3, LENGTH - 2, LENGTH - 1]
    assert dream.actions[:3, 0].tolist() == [RIGHT, RIGHT, OPEN]
    assert dream.rewards[:, 0].tolist() == [0.0, 0.0, 1.0, 0.0]  # row t is paid for actions[t]
    assert dream.continues[:, 0].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert dream.rewards[:, 1].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_dreaming_in_a_world_model_is_stepping_it_by_hand():
    environment = spec_of("MiniGrid-Empty-Random-6x6-v0")
    model = small_model(environment)
    agent = fresh_agent(model)
    env = make_env("MiniGrid-Empty-Random-6x6-v0", seed=0)
    frames = torch.stack([torch.from_numpy(env.reset(seed=k)[0]) for k in range(3)])
    state, _ = model.observe(model.initial_state(3), None, frames, torch.ones(3, dtype=torch.bool))
    kept, keys = state.clone(), torch.tensor([5, 6, 7])
    dream = imagine(model, agent, state, 5, keys)
    assert dream.features.shape == (6, 3, model.feature_width) and dream.rewards.shape == (5, 3)
    assert not dream.features.requires_grad

    by_hand = kept
    for t in range(5):
        torch.testing.assert_close(dream.features[t], by_hand.feature)
        action = agent.policy(by_hand.feature).sample(action_noise(keys, t, 7))
        assert torch.equal(dream.actions[t], action)
        by_hand, out = model.imagine(by_hand, action)
        torch.testing.assert_close(dream.rewards[t], out.reward_mean)
        torch.testing.assert_close(dream.continues[t], 1 - out.terminated_probability)
    assert all(torch.equal(v, kept.tensors[n]) for n, v in state.tensors.items())  # the start states stay as they were
    alone = imagine(model, agent, state[1:2], 5, keys[1:2])
    assert torch.equal(alone.actions[:, 0], dream.actions[:, 1])  # neighbours do not matter


def test_rows_draw_different_actions_at_each_step():
    noise = torch.stack([action_noise(torch.arange(64), t, 3) for t in range(16)])
    assert noise.flatten().unique().numel() > 0.99 * noise.numel()
    assert abs(noise.mean().item() - 0.5) < 0.02
