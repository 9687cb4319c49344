import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from worldmodel.envs.random_policy import RandomPolicy

NOTHING = np.zeros((4, 1))


@pytest.mark.parametrize("space", [Discrete(5, start=2), MultiDiscrete([2, 3]), Box(-1, 2, (3,))], ids=str)
def test_actions_lie_in_the_space(space):
    policy, memory = RandomPolicy(space, 0), None
    for _ in range(20):
        actions, memory = policy.act(NOTHING, memory)
        assert actions.shape == (4, *space.shape) and actions.dtype == space.dtype
        assert all(space.contains(action) for action in actions)


def test_all_choices_are_equally_likely():
    policy, memory, seen = RandomPolicy(Discrete(4), 0), None, []
    for _ in range(1000):
        actions, memory = policy.act(NOTHING, memory)
        seen.extend(actions)
    assert np.abs(np.bincount(seen) / len(seen) - 0.25).max() < 0.03


def test_an_episode_follows_from_its_seed_alone():
    def draw(policy, rows, row, steps):
        memory, drawn = None, []
        for _ in range(steps):
            actions, memory = policy.act(np.zeros((rows, 1)), memory)
            drawn.append(actions[row])
        return drawn

    assert draw(RandomPolicy(Discrete(9), [7, 8]), 2, 1, 10) == draw(RandomPolicy(Discrete(9), [8]), 1, 0, 10)


def test_a_row_that_begins_again_takes_the_next_seed_and_leaves_the_others():
    policy = RandomPolicy(Discrete(1000), 0)
    _, memory = policy.act(NOTHING, None)
    kept, _ = RandomPolicy(Discrete(1000), 0).act(NOTHING, None)
    first = np.array([False, True, False, False])
    begun, _ = policy.act(NOTHING, memory, first)
    fresh, _ = RandomPolicy(Discrete(1000), [4]).act(NOTHING[:1], None)
    assert begun[1] == fresh[0] != kept[1]
    again, memory = RandomPolicy(Discrete(1000), 0), None
    for _ in range(2):
        expected, memory = again.act(NOTHING, memory)
    assert (begun[~first] == expected[~first]).all()
