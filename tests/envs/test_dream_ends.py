"""How dreams end and begin anew: flags, horizon and the three ways to reset, as Gymnasium has them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from dreaming import actions_of, close, make_vec, play, steps_with_an_end
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny_run import write_run

import worldmodel  # noqa: F401 (registers the environment)
from worldmodel.envs.contexts import load_contexts
from worldmodel.envs.dream import DreamVectorEnv
from worldmodel.envs.make import make_env
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import rollout
from worldmodel.envs.starts import load_world

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"


def test_truncated_at_the_horizon_and_never_with_termination(always: str, tmp_path: Path) -> None:
    never = str(write_run(tmp_path / "never", MINIGRID, end_bias=-50.0, steps=60))
    venv = make_vec(never, 3, horizon=4)
    venv.reset(seed=0)
    steps = play(venv, actions_of(venv, 8))
    assert [bool(step[3].all()) for step in steps] == [False, False, False, True] * 2
    assert not any(step[2].any() for step in steps)

    venv = make_vec(always, 3, horizon=1)
    venv.reset(seed=0)
    _, _, terminated, truncated, _ = venv.step(np.zeros(3, dtype=np.int64))
    assert terminated.all() and not truncated.any()


def test_the_horizon_is_the_real_environments_limit(run: str, cartpole: str, tmp_path: Path) -> None:
    copy = shutil.copytree(cartpole, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["environment"]["episode_limit"] = 77
    (copy / "config.json").write_text(json.dumps(config))
    assert DreamVectorEnv(1, copy).horizon == 77
    assert DreamVectorEnv(1, copy, horizon=5).horizon == 5
    config["environment"]["episode_limit"] = None
    (copy / "config.json").write_text(json.dumps(config))
    assert DreamVectorEnv(1, copy).horizon == 200  # and the changed file was noticed


def test_termination_is_what_the_model_says(run: str) -> None:
    venv = make_vec(run, 16, autoreset_mode="Disabled")
    venv.reset(seed=0)
    actions = actions_of(venv, 20)
    for a in actions:
        state = venv.get_state().state
        _, rewards, terminated, _, _ = venv.step(a)
        _, out = venv.model.imagine(state, torch.from_numpy(a))
        np.testing.assert_array_equal(terminated, out.terminated.numpy())
        np.testing.assert_allclose(rewards, out.reward.numpy())
        if terminated.any():
            return
    pytest.fail("no dream ended in 20 steps of 16 rows")


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_autoreset_has_the_format_of_the_real_environment(run: str, mode: AutoresetMode) -> None:
    real = SyncVectorEnv([lambda: make_env(MINIGRID, max_episode_steps=4)] * 3, autoreset_mode=mode)
    dream = make_vec(run, 3, horizon=4, autoreset_mode=mode)
    assert dream.metadata["autoreset_mode"] is mode
    ours, theirs = steps_with_an_end(dream), steps_with_an_end(real)
    kinds = {describe(step) for step in theirs}
    assert len(kinds) == (2 if mode == AutoresetMode.SAME_STEP else 1)
    assert {describe(step) for step in ours} == kinds
    if mode == AutoresetMode.SAME_STEP:
        for observations, _, terminated, truncated, info in ours:
            np.testing.assert_array_equal(info.get("_final_obs", np.zeros(3, bool)), terminated | truncated)
            for row in np.flatnonzero(terminated | truncated):
                assert (info["final_obs"][row] != observations[row]).any()
    else:
        for (_, _, terminated, truncated, _), (_, rewards, *flags, _) in itertools.pairwise(ours):
            ended = terminated | truncated
            assert not rewards[ended].any() and not flags[0][ended].any() and not flags[1][ended].any()


def describe(step: tuple) -> tuple:
    """Types, dtypes, shapes and keys of everything in a step, but for which rows ended."""
    return tuple(_describe(part) for part in step)


def _describe(value) -> tuple:
    if isinstance(value, dict):
        return tuple((key, _describe(v)) for key, v in value.items())
    if value.dtype == object:
        return ("objects", value.shape, *{(v.dtype, v.shape) for v in value if v is not None})
    return (value.dtype, value.shape)


def test_a_restarted_row_shows_the_beginning_of_a_new_dream(run: str) -> None:
    starts = load_world(run).starts["initial"].frames
    for mode, delay in ((AutoresetMode.SAME_STEP, 0), (AutoresetMode.NEXT_STEP, 1)):
        venv = make_vec(run, 4, horizon=3, autoreset_mode=mode)
        steps = steps_with_an_end(venv)
        for (_, _, terminated, truncated, _), (observations, *_) in zip(steps, steps[delay:]):
            for row in np.flatnonzero(terminated | truncated):
                assert any((observations[row] == start).all() for start in starts)


def test_the_step_that_restarts_a_row_ends_nothing(always: str) -> None:
    venv = make_vec(always, 3, autoreset_mode=AutoresetMode.NEXT_STEP)
    steps = steps_with_an_end(venv, 6)
    assert [bool(step[2].all()) for step in steps] == [True, False] * 3
    assert not any(step[2].any() or step[1].any() for step in steps[1::2])


def test_dreams_begin_where_the_contexts_say(run: str) -> None:
    world, contexts = load_world(run), load_contexts(Path(run) / "contexts.npz")
    initial = contexts[contexts.initial]
    n = len(initial)
    state, out = world.model.observe(
        world.model.initial_state(n, seed=0), None, torch.from_numpy(initial.frames[:, -1]), torch.ones(n, dtype=bool)
    )
    assert all(map(close, world.starts["initial"].frames, world.model.decode(out).numpy()))
    torch.testing.assert_close(world.starts["initial"].state.feature, state.feature)
    assert len(world.starts["anywhere"]) == len(contexts) - n > 0
    for starts in ("initial", "anywhere"):
        shown = DreamVectorEnv(64, run, starts=starts).reset(seed=0)[0]
        assert {s.tobytes() for s in shown} == {s.tobytes() for s in world.starts[starts].frames}


def test_without_autoreset_the_caller_restarts_rows(run: str) -> None:
    venv = make_vec(run, 4, horizon=3, autoreset_mode=AutoresetMode.DISABLED)
    venv.reset(seed=0)
    action = np.zeros(4, dtype=np.int64)
    ended = np.zeros(4, bool)
    while not ended.any():
        before, _, terminated, truncated, info = venv.step(action)
        ended = terminated | truncated
        assert info == {}
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        venv.step(action)
    options = {"reset_mask": ended}
    after, _ = venv.reset(seed=[50, 51, 52, 53], options=options)
    assert "reset_mask" in options
    np.testing.assert_array_equal(after[~ended], before[~ended])
    same = DreamVectorEnv(4, run).reset(seed=[50, 51, 52, 53])[0]
    np.testing.assert_array_equal(after[ended], same[ended])
    venv.step(action)
    for mask in ([True] * 4, np.ones(3, bool), np.ones(4, int)):
        with pytest.raises(TypeError, match="reset_mask"):
            venv.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="at least one"):
        venv.reset(options={"reset_mask": np.zeros(4, bool)})


def test_the_rollout_loop_runs_on_dreams(run: str) -> None:
    venv = make_vec(run, 3, horizon=8, autoreset_mode=AutoresetMode.DISABLED)
    policy = RandomPolicy(venv.single_action_space, range(5))
    episodes = list(rollout(venv, policy, episodes=5, seeds=range(5)))
    assert sorted(e.seed for e in episodes) == list(range(5))
    assert all(e.terminated != e.truncated and 1 <= e.length <= 8 for e in episodes)
