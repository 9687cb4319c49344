import json
import re

import pytest
import torch

from worldmodel.agents.actor_critic import ALLOWED, ActorCritic, AgentConfig, actor_loss, critic_loss
from worldmodel.specs import ActionSpec
from worldmodel.two_hot import TwoHot

ACTION = ActionSpec(kind="discrete", sizes=(3,))
CONFIG = AgentConfig(width=16)


def test_config_survives_json_and_names_an_unknown_field():
    config = AgentConfig(width=7, entropy=0.5)
    assert AgentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="does not know: witdh"):
        AgentConfig.from_dict({"witdh": 7})


@pytest.mark.parametrize(
    "field, values",
    [
        ("discount", (7, 0.0, -0.1, 1.0001, float("nan"), None)),
        ("entropy", (-1.0, float("inf"), "much")),
        ("slow_weight", (-0.1,)),
        ("lam", (-0.1, 1.1)),
        ("return_rate", (-0.1, 1.1)),
        ("slow_rate", (0.0, 1.1)),
        ("unimix", (-0.1, 1.0)),
        ("bins", (1, 41.0)),
        ("learning_rate", (0.0, -1e-3, float("nan"))),
        *((name, (0, -1.0)) for name in ("value_range", "clip")),
        *((name, (0, -1, 2.5, True)) for name in ("width", "layers", "dreams", "horizon")),
    ],
)
def test_numbers_that_make_no_sense_are_refused(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"AgentConfig: {field} must be a .*, not {re.escape(repr(value))}"):
            AgentConfig(**{field: value})


def test_every_number_is_checked_and_the_ends_of_what_is_allowed_are_allowed():
    checked = [name for _, _, names in ALLOWED for name in names]
    assert sorted(checked) == sorted(AgentConfig().to_dict())
    AgentConfig(discount=1, entropy=0.0, lam=0.0, return_rate=0.0, slow_rate=1.0, slow_weight=0.0, unimix=0.0)
    AgentConfig(lam=1, return_rate=1, bins=2, width=1, layers=1, dreams=1, horizon=1)


def test_the_largest_value_is_that_of_the_outermost_bin():
    for config in (AgentConfig(), AgentConfig(value_range=3.0, width=8)):
        largest = ActorCritic(5, ACTION, config).two_hot.values[-1].item()
        assert largest == pytest.approx(config.largest_value)
    assert round(AgentConfig().largest_value) == 147


def test_a_fresh_agent_is_indifferent_and_expects_nothing():
    agent = ActorCritic(5, ACTION, CONFIG)
    feature = torch.randn(4, 5)
    torch.testing.assert_close(agent.policy(feature).log_probs[0].exp(), torch.full((4, 3), 1 / 3))
    assert (agent.value(feature) == 0).all()


def test_zero_outputs_still_let_every_weight_learn_after_one_step():
    agent = ActorCritic(5, ACTION, CONFIG)
    optimizer = torch.optim.SGD(agent.actor.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        agent.policy(torch.ones(4, 5)).log_prob(torch.zeros(4, dtype=torch.int64)).sum().backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in agent.actor.parameters())


def test_actor_loss_pushes_towards_good_actions_and_stops_at_the_end():
    logits = torch.zeros(2, 1, 3, requires_grad=True)
    log_prob = logits.log_softmax(-1)[..., 0]  # action 0 was taken in both steps
    advantage, weight = torch.tensor([[2.0], [-5.0]]), torch.tensor([[1.0], [0.0]])
    actor_loss(log_prob, torch.zeros(2, 1), advantage, weight, 0.0).backward()
    assert logits.grad[0, 0, 0] < 0 < logits.grad[0, 0, 1]  # descent raises the logit of the good action
    assert (logits.grad[1] == 0).all()  # weight 0: after the episode's end


def test_entropy_bonus_pushes_towards_indifference():
    logits = torch.tensor([[[2.0, 0.0, 0.0]]], requires_grad=True)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    actor_loss(log_p[..., 0], entropy, torch.zeros(1, 1), torch.ones(1, 1), 0.1).backward()
    assert logits.grad[0, 0, 0] > 0 > logits.grad[0, 0, 1]


def test_critic_loss_fits_the_returns_and_feels_the_slow_critic():
    two_hot = TwoHot(41, -5.0, 5.0)

    def fitted(slow_weight):
        logits = torch.zeros(1, 2, 41, requires_grad=True)
        optimizer = torch.optim.Adam([logits], 0.3)
        for _ in range(300):
            optimizer.zero_grad()
            returns, slow = torch.tensor([[1.0, -3.0]]), torch.zeros(1, 2)
            critic_loss(two_hot, logits, returns, slow, torch.ones(1, 2), slow_weight).backward()
            optimizer.step()
        return two_hot.mean(logits)[0]

    torch.testing.assert_close(fitted(0.0), torch.tensor([1.0, -3.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(fitted(1.0), torch.tensor([0.5, -1.5]), atol=0.05, rtol=0)


def test_losses_refuse_shapes_that_would_broadcast():
    a, b = torch.zeros(4, 1), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="shapes differ"):
        actor_loss(a, a, b, a, 0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        critic_loss(TwoHot(), torch.zeros(4, 1, 41), a, b, a, 1.0)


def test_slow_critic_follows_by_one_step_an_update():
    agent = ActorCritic(5, ACTION, CONFIG)
    before = agent.slow_critic[-1].bias.clone()
    with torch.no_grad():
        agent.critic[-1].bias += 1.0
    agent.after_update()
    torch.testing.assert_close(agent.slow_critic[-1].bias, before + CONFIG.slow_rate)
    assert not any(p.requires_grad for p in agent.slow_critic.parameters())


def test_return_scale_is_a_running_spread_with_a_floor_of_one():
    agent = ActorCritic(5, ACTION, CONFIG)
    small = torch.linspace(0.0, 0.2, 101)
    agent.track_returns(small, torch.ones(101))
    assert agent.return_scale().item() == 1.0
    agent = ActorCritic(5, ACTION, CONFIG)
    large = torch.linspace(0.0, 100.0, 101)
    garbage_after_the_end = torch.cat([large, torch.full((50,), -1e6)])
    agent.track_returns(garbage_after_the_end, torch.cat([torch.ones(101), torch.zeros(50)]))
    assert agent.return_scale().item() == pytest.approx(90.0)
    agent.updates += 1000  # late, one odd batch moves little
    agent.track_returns(large * 10, torch.ones(101))
    assert agent.return_scale().item() == pytest.approx(90.0 + CONFIG.return_rate * 810.0, rel=1e-4)
