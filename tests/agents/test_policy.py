import warnings

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from small_run import fresh_agent, small_model, write_run

import worldmodel
from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.imagination import action_noise
from worldmodel.agents.policy import Agent
from worldmodel.envs.make import make_env, make_vector_env, spec_of
from worldmodel.envs.rollout import rollout
from worldmodel.envs.spaces import action_spec, observation_spec, space_to_json
from worldmodel.errors import UserError

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), MINIGRID)


@pytest.fixture(scope="module")
def frames():
    """(T=6, B=3) real frames."""
    venv = make_vector_env(MINIGRID, 3)
    shown = [venv.reset(seed=[1, 2, 3])[0].copy()]
    rng = np.random.default_rng(0)
    for _ in range(5):
        shown.append(venv.step(rng.integers(0, 3, 3))[0].copy())
    return np.stack(shown)


def play(agent, frames, first=None):
    memory, actions = None, []
    for t, frame in enumerate(frames):
        action, memory = agent.act(frame, memory, None if first is None else first[t])
        actions.append(action)
    return np.stack(actions), memory


def test_acting_is_observing_and_asking_the_actor(run, frames):
    agent = Agent.load(run, seed=2)
    model, networks = agent.model, agent.actor_critic
    keys = 2 * 2**32 + torch.arange(3)
    state = model.initial_state(3, seed=keys)
    action, memory = torch.zeros(3, dtype=torch.int64), None
    for t, frame in enumerate(frames):
        state, out = model.observe(state, action, torch.from_numpy(frame), torch.full((3,), t == 0))
        action = networks.policy(out.feature).sample(action_noise(keys, t, 7))
        acted, memory = agent.act(frame, memory)
        assert acted.tolist() == action.tolist()
        torch.testing.assert_close(memory.state.feature, out.feature)


def test_the_last_action_reaches_the_model(run, frames):
    agent = Agent.load(run)
    _, memory = agent.act(frames[0])
    other = type(memory)(memory.state, (memory.action + 1) % 7, memory.keys, memory.steps, memory.episodes)
    features = [agent.act(frames[1], m)[1].state.feature for m in (memory, other)]
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_greedy_takes_the_most_likely_action(run, frames):
    agent = Agent.load(run, greedy=True)
    action, memory = agent.act(frames[0])
    assert action.tolist() == agent.actor_critic.actor(memory.state.feature).argmax(-1).tolist()


def test_a_memory_can_be_acted_on_twice(run, frames):
    agent = Agent.load(run)
    _, memory = agent.act(frames[0])
    once, twice = agent.act(frames[1], memory), agent.act(frames[1], memory)
    assert once[0].tolist() == twice[0].tolist()
    assert torch.equal(once[1].state.feature, twice[1].state.feature)


def test_seeds(run, frames):
    many = np.repeat(frames, 20, axis=1)
    actions = [play(Agent.load(run, seed=s), many)[0] for s in (0, 0, 1)]
    assert (actions[0] == actions[1]).all() and (actions[0] != actions[2]).any()
    assert (actions[0][:, 0] != actions[0][:, 1]).any()  # rows that see the same do not act the same


def test_rows_restart_alone(run, frames):
    agent = Agent.load(run)
    first = np.zeros((6, 3), bool)
    first[3, 1] = True
    _, straight = play(agent, frames)
    _, restarted = play(agent, frames, first)
    for row in (0, 2):
        torch.testing.assert_close(restarted.state.feature[row], straight.state.feature[row])
        assert restarted.keys[row] == straight.keys[row]
    assert restarted.keys[1] == 3 and restarted.steps.tolist() == [6, 3, 6]  # the fourth episode that this agent began
    assert (restarted.state.feature[1] - straight.state.feature[1]).abs().max() > 1e-3
    # What the row saw before is forgotten: it stands where another agent's fourth episode stands after these frames.
    _, alone = play(agent, frames[:, 1:2], np.array([True, True, True, True, False, False])[:, None])
    assert alone.keys.tolist() == [3]
    torch.testing.assert_close(alone.state.feature[0], restarted.state.feature[1])


def test_an_episode_does_not_depend_on_how_many_run_beside_it(run):
    def actions(num_envs):
        venv = make_vector_env(spec_of(MINIGRID, max_episode_steps=12), num_envs)
        played = rollout(venv, Agent.load(run, seed=5), episodes=3, seeds=[1, 2, 3])
        return {e.seed: e.actions.tolist() for e in played}

    assert actions(1) == actions(3)


def test_single_observations(run, frames):
    agent = Agent.load(run)
    action, memory = agent.act(frames[0, 0])
    batched, _ = agent.act(frames[0, :1])
    assert action.shape == () and action == batched[0]
    action, memory = agent.act(frames[1, 0], memory)
    env = make_env(MINIGRID, seed=0)
    env.step(action)
    _, restarted = agent.act(frames[1, 0], memory, first=True)
    assert restarted.steps.tolist() == [1] and memory.steps.tolist() == [2]


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3, start=-1),
        MultiDiscrete([2, 4]),
        Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)),
    ],
)
def test_actions_are_the_environments_own(space):
    observation = Box(-1, 1, (3,), np.float32)
    environment = {"observation_space": space_to_json(observation), "action_space": space_to_json(space)}
    model = small_model(environment)
    assert model.config.observation == observation_spec(observation) and model.config.action == action_spec(space)
    agent = Agent(model, fresh_agent(model), observation, space)
    rng, memory, seen = np.random.default_rng(0), None, []
    for _ in range(20):
        action, memory = agent.act(rng.uniform(-1, 1, (4, 3)).astype(np.float32), memory)
        assert all(space.contains(a) for a in action)
        seen.append(action)
    assert np.stack(seen).std(axis=(0, 1)).min() > 0.1  # both choices vary, over their own range
    assert agent.act(np.zeros(3, np.float32))[0].shape == space.shape


def test_saved_and_loaded_through_the_public_door(run, frames, tmp_path):
    agent = worldmodel.load_agent(run)
    Agent.load(run).save(tmp_path)
    assert (tmp_path / "agent.safetensors").read_bytes() == (run / "agent.safetensors").read_bytes()
    assert agent.act(frames[0])[0].shape == (3,)


def test_what_does_not_fit_is_said(run, frames, tmp_path):
    agent = Agent.load(run)
    with pytest.raises(UserError, match="observations of shape"):
        agent.act(frames[0][:, :40])
    with pytest.raises(ValueError, match="3 rows"):
        agent.act(frames[0][:2], agent.act(frames[0])[1])
    stranger = ActorCritic(5, agent.actor_critic.action)
    with pytest.raises(UserError, match="expects 5 features"):
        Agent(agent.model, stranger, agent.observation_space, agent.action_space)
    with pytest.raises(UserError, match="not a run folder"):
        Agent.load(tmp_path)


@pytest.mark.parametrize("shown", ["read-only", "flipped", "turned", "every other row"])
def test_an_observation_may_be_any_view_of_an_array(run, frames, shown):
    frame = frames[0].copy()
    if shown == "read-only":
        frame.flags.writeable = False
    elif shown == "flipped":
        frame = frame[:, ::-1, ::-1]
    elif shown == "turned":
        frame = np.rot90(frame, axes=(1, 2))
    else:
        frame = frames[:2].reshape(6, 56, 56, 3)[::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        action, memory = Agent.load(run, seed=2).act(frame)
    expected, other = Agent.load(run, seed=2).act(frame.copy())
    assert action.tolist() == expected.tolist() and torch.equal(memory.state.feature, other.state.feature)


def test_numbers_of_another_width_are_seen_as_those_of_the_space(run, frames):
    """Not every environment shows the type that its space promises."""
    agent = Agent.load(run, seed=2)
    (wanted, memory), (actions, other) = agent.act(frames[0]), Agent.load(run, seed=2).act(frames[0].astype(np.int64))
    assert actions.tolist() == wanted.tolist() and torch.equal(other.state.feature, memory.state.feature)
    space = Box(-1, 1, (3,), np.float32)
    vectors = {"observation_space": space_to_json(space), "action_space": space_to_json(Discrete(3))}
    agent = Agent(model := small_model(vectors), fresh_agent(model), space, Discrete(3))
    seen = np.random.default_rng(0).uniform(-1, 1, (4, 3))
    features = [agent.act(seen.astype(dtype))[1].state.feature for dtype in (np.float64, ">f4", np.float32)]
    assert torch.equal(features[0], features[2]) and torch.equal(features[1], features[2])


@pytest.mark.parametrize("wrong", [lambda f: f / 255.0, lambda f: f.astype(np.int64) - 256, lambda f: f.astype("U3")])
def test_numbers_that_the_space_cannot_hold_are_refused(run, frames, wrong):
    with pytest.raises(UserError, match="trained on observations of uint8, which cannot hold these of"):
        Agent.load(run).act(wrong(frames[0]))
