import json

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from small_run import write_run

from worldmodel.agents.evaluate import evaluate_policy
from worldmodel.agents.policy import Agent
from worldmodel.envs.collect import collect
from worldmodel.envs.contexts import choose_contexts, save_contexts
from worldmodel.envs.make import make_vector_env
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.segments import FrameTable

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"


class Spin:
    def act(self, observation, memory, first=None):
        return np.zeros(len(observation), np.int64), None


class Half:
    """Pushes a CartPole to the right, always: it falls after about ten steps, each of which pays 1."""

    def act(self, observation, memory, first=None):
        return np.ones(len(observation), np.int64), None


def test_figures_are_of_exactly_the_given_seeds():
    results = [evaluate_policy(make_vector_env("CartPole-v1", n), Half(), 5, iter(range(100, 200))) for n in (1, 3)]
    assert results[0] == results[1]  # also when episodes end in another order
    result = results[0]
    assert result.seeds == [100, 101, 102, 103, 104] and result.terminated == [True] * 5
    assert result.lengths == [int(r) for r in result.returns]
    assert result.mean_length == sum(result.lengths) / 5 == result.mean_return
    assert result.success == 1.0
    assert json.loads(json.dumps(result.to_dict()))["lengths"] == result.lengths


def test_success_is_a_positive_return():
    venv = make_vector_env(MINIGRID, 4)
    spinning = evaluate_policy(venv, Spin(), 4, range(4))
    assert spinning.success == 0.0 and spinning.mean_length == 144 and not any(spinning.terminated)
    random = evaluate_policy(venv, RandomPolicy(venv.single_action_space), 24, range(24))
    assert random.success == sum(r > 0 for r in random.returns) / 24 == sum(random.terminated) / 24
    assert 0 < random.success < 1
    assert evaluate_policy(venv, Spin(), 4, range(4), limit=9).lengths == [9] * 4


def test_an_agent_is_evaluated_reproducibly(tmp_path):
    agent = Agent.load(write_run(tmp_path, "CartPole-v1"))
    results = [evaluate_policy(make_vector_env("CartPole-v1", 2), agent, 4, range(4)) for _ in range(2)]
    assert results[0] == results[1]


def test_the_same_agent_and_loop_serve_a_dream(tmp_path):
    run = write_run(tmp_path / "run", "CartPole-v1")
    table = FrameTable.from_store(collect("CartPole-v1", tmp_path / "data", 60, num_envs=2, progress=False))
    save_contexts(run / "contexts.npz", choose_contexts(table, count=4))
    dream = gymnasium.make_vec(
        "worldmodel/Dream-v0", num_envs=2, checkpoint=run, horizon=6, autoreset_mode=AutoresetMode.DISABLED
    )
    results = [evaluate_policy(dream, Agent.load(run), 3, range(3)) for _ in range(2)]
    assert results[0] == results[1]
    assert all(1 <= length <= 6 for length in results[0].lengths)
