"""Which frame, action and seed meets which: the environment itself, run as a model, must dream the exact truth."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.make import make_from_spec, spec_of
from worldmodel.envs.open_loop import closed_loop, observe_context, open_loop, truth
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import load_test_set
from worldmodel.envs.windows import choose_windows
from worldmodel.model import WorldModel
from worldmodel.presets import preset


class TrueState(list):
    """A copy of the environment for each row."""

    def __getitem__(self, rows):
        return TrueState(super().__getitem__(rows))


class TrueModel:
    """The environment behind the world model's interface. It finds its place by replay, and checks what it is shown."""

    def __init__(self, test_set, folder, windows):
        self.table, self.windows = test_set.table, windows
        self.env = make_from_spec(test_set.environment)
        self.episodes = list(EpisodeStore.open(folder / "store").episodes())
        self.config = preset("tiny", observation_spec(self.env.observation_space), action_spec(self.env.action_space))
        self.mistakes = 0

    def initial_state(self, batch_size, seed=0, elapsed=None):
        begun = self.table.begin[self.table.episode_of(self.windows.begin)]
        assert elapsed.tolist() == (self.windows.begin - begun).tolist()
        return TrueState([None] * batch_size)

    def observe(self, state, action, frame, first):
        step = self._step(state, action, first)
        self.mistakes += int((step[1].frames != frame).any(dim=(1, 2, 3)).sum())
        return step

    def imagine(self, state, action, *, greedy=False):
        assert greedy
        return self._step(state, action, torch.zeros(len(state), dtype=torch.bool))

    def decode(self, out):
        return out.frames

    def _begin(self, row, first):
        """The environment just before a window's first frame (or at it, where that begins an episode)."""
        position = self.windows.begin[row]
        number = int(self.table.episode_of(position))
        inner = copy.deepcopy(self.env.unwrapped)
        inner.reset(seed=self.episodes[number].seed)
        for action in self.episodes[number].actions[: max(0, position - self.table.begin[number] - 1)]:
            inner.step(int(action))
        assert first == (position == self.table.begin[number])
        return inner

    def _step(self, state, action, first):
        following, frames, rewards, ends = TrueState(), [], [], []
        for row, inner in enumerate(state):
            inner = self._begin(row, bool(first[row])) if inner is None else copy.deepcopy(inner)
            _, reward, terminated, _, _ = (None, 0.0, False, None, None) if first[row] else inner.step(int(action[row]))
            following.append(inner)
            frames.append(inner.get_frame(tile_size=8, agent_pov=True))
            rewards.append(reward)
            ends.append(terminated)
        B = len(state)
        reward, terminated = torch.tensor(rewards, dtype=torch.float32), torch.tensor(ends)
        out = SimpleNamespace(
            reward=reward,
            reward_mean=reward,
            terminated=terminated,
            terminated_probability=terminated.float(),
            chunks=torch.full((B,), 2),
            starts=torch.tensor([[0, 7]]).repeat(B, 1),
            start_entropy=torch.zeros(B),
            frames=torch.from_numpy(np.stack(frames)),
        )
        return following, out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "doorkey"
    test_set = load_test_set(spec_of("MiniGrid-DoorKey-5x5-v0", max_steps=60), folder, episodes=8, progress=False)
    windows = choose_windows(test_set.table, test_set.succeeding, horizons=(1, 5, 15), count=24)
    return test_set, folder, windows


def test_the_environment_as_a_model_is_exact(world):
    test_set, _, windows = world
    table, model = test_set.table, TrueModel(*world)
    true = truth(table, windows)
    state = observe_context(model, table, windows)
    assert model.mistakes == 0
    for rollout in (open_loop(model, state, table, windows), closed_loop(model, state, table, windows)):
        reached = windows.steps[:, None] >= np.array(windows.horizons)
        assert np.array_equal(rollout.frames[reached], true.frames[reached])
        assert np.allclose(rollout.reward[reached], true.reward[reached])
        assert np.array_equal(rollout.terminated[reached], true.terminated[reached])
        assert rollout.chunks == 2
    assert model.mistakes == 0 and true.terminated.any()
    assert (windows.begin == table.begin[table.episode_of(windows.begin)]).any()  # some windows begin an episode


def test_shuffled_actions_lead_elsewhere(world):
    test_set, _, windows = world
    model = TrueModel(*world)
    state = observe_context(model, test_set.table, windows)
    true = truth(test_set.table, windows)
    shuffled = open_loop(model, state, test_set.table, windows, shuffle_seed=0)
    changed = test_set.table.index[windows.at(1)] != test_set.table.index[windows.at(0)]
    exact = (shuffled.frames[:, 0] == true.frames[:, 0]).all((1, 2, 3))
    assert changed.sum() > 10 and exact[changed].mean() < 0.6


def test_the_whole_report_of_the_environment_as_a_model(world):
    test_set, folder, _ = world
    windows = choose_windows(test_set.table, test_set.succeeding, horizons=(1, 5), count=12)
    report = measure_fidelity(TrueModel(test_set, folder, windows), test_set, horizons=(1, 5), windows=12)
    for entry in report["horizons"].values():
        for name in ("dream", "closed_loop"):
            assert entry["frames"][name]["all"]["exact"] == 1
            assert entry["reward"][name]["f1"] == entry["termination"][name]["f1"] == 1
        assert entry["frames"]["shuffled_actions"]["changed"]["exact"] < 1
        assert entry["reward_mean"]["squared_error"] == 0


def test_windows_of_different_lengths_do_not_touch_each_other(world):
    """Each window dreamed alone comes out as it did beside the others."""
    test_set, _, windows = world
    table = test_set.table
    spec = make_from_spec(test_set.environment)
    torch.manual_seed(0)
    model = WorldModel(preset("tiny", observation_spec(spec.observation_space), action_spec(spec.action_space))).eval()
    state = observe_context(model, table, windows)
    together = open_loop(model, state, table, windows)
    for row in (0, len(windows) - 1):
        names = ("begin", "steps", "sampled", "eventful")
        alone = dataclasses.replace(windows, **{name: getattr(windows, name)[row : row + 1] for name in names})
        single = open_loop(model, state[row], table, alone)
        assert np.allclose(single.terminated_probability[0], together.terminated_probability[row], atol=1e-5)
        assert np.abs(single.frames[0].astype(int) - together.frames[row]).max() <= 1
