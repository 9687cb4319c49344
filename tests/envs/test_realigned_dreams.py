"""Environments and fidelity of dreams that are shown, every so many steps, what they painted."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from dreaming import actions_of, close, make_vec, play
from gymnasium.utils.env_checker import check_env

from worldmodel.envs.dream import DreamEnv, DreamVectorEnv
from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.fidelity_table import fidelity_table
from worldmodel.envs.make import spec_of
from worldmodel.envs.open_loop import observe_context, open_loop
from worldmodel.envs.starts import load_world
from worldmodel.envs.test_set import load_test_set
from worldmodel.envs.windows import choose_windows

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"


def test_every_third_step_is_what_the_model_makes_of_its_own_frame(run: str) -> None:
    venv = make_vec(run, 4, horizon=100, realign=3, autoreset_mode="Disabled", greedy=True)
    model = venv.model
    venv.reset(seed=0)
    state = venv.get_state().state
    for step, action in enumerate(actions_of(venv, 7), start=1):
        before, actions = state, torch.from_numpy(action)
        state, out = model.imagine(before, actions, greedy=True)
        if step % 3 == 0:
            state, out = model.realign(before, actions, out)
        observations, rewards, terminated, _, _ = venv.step(action)
        np.testing.assert_array_equal(observations, model.decode(out).numpy())
        np.testing.assert_array_equal(rewards, out.reward.numpy())
        np.testing.assert_array_equal(terminated, out.terminated.numpy())
        here = venv.get_state().state
        assert all(torch.equal(value, here.tensors[name]) for name, value in state.tensors.items())


def test_until_the_first_realigned_frame_and_in_it_the_dream_looks_the_same(run: str) -> None:
    plain, aligned = make_vec(run, 8, horizon=100), make_vec(run, 8, horizon=100, realign=3)
    plain.reset_tensor(seed=0), aligned.reset_tensor(seed=0)
    differs = []
    for action in torch.from_numpy(actions_of(plain, 4)):
        _, *one, a = plain.step_tensor(action)
        _, *two, b = aligned.step_tensor(action)
        if len(differs) < 3:
            assert all(torch.equal(x, y) for x, y in zip(one, two))
            np.testing.assert_array_equal(plain.get_state().frames, aligned.get_state().frames)
        differs.append(not torch.equal(a["final_feature"], b["final_feature"]))
    assert differs == [False, False, True, True]


def test_a_row_counts_its_own_steps(run: str) -> None:
    """Rows that restart at different times are realigned at different times, each as it would be alone."""
    wide = make_vec(run, 5, horizon=7, realign=2)
    actions = actions_of(wide, 20)
    frames = [wide.reset(seed=[3, 1, 4, 15, 9])[0]]
    steps = play(wide, actions)
    ends = np.stack([terminated | truncated for _, _, terminated, truncated in steps])
    assert (ends.any(1) & ~ends.all(1)).any(), "the rows must fall out of step to test anything"
    for row, seed in ((1, 1), (3, 15)):
        single = DreamEnv(run, horizon=7, realign=2)
        assert close(single.reset(seed=seed)[0], frames[0][row])
        for t, (observations, rewards, terminated, truncated) in enumerate(steps):
            o, r, end, cut, _ = single.step(actions[t, row])
            assert r == pytest.approx(rewards[row], abs=1e-5)
            assert (end, cut) == (terminated[row], truncated[row])
            if end or cut:
                o, _ = single.reset()
            assert close(o, observations[row])


def test_the_same_seed_gives_the_same_bits(run: str) -> None:
    venv = make_vec(run, 4, horizon=6, realign=2)
    actions = actions_of(venv, 10)
    first = [venv.reset(seed=7)[0], *play(venv, actions)]
    for one, two in zip(first, [venv.reset(seed=7)[0], *play(venv, actions)]):
        for x, y in zip(one, two):
            np.testing.assert_array_equal(x, y)


def test_a_snapshot_keeps_the_count(run: str) -> None:
    venv = make_vec(run, 3, horizon=50, realign=3)
    venv.reset(seed=0)
    actions = actions_of(venv, 9)
    play(venv, actions[:2])
    here = venv.get_state()
    once = play(venv, actions[2:])
    venv.set_state(here)
    for a, b in zip(once, play(venv, actions[2:])):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


def test_gymnasium_finds_nothing_wrong(run: str, cartpole: str) -> None:
    check_env(gymnasium.make("worldmodel/Dream-v0", checkpoint=run, realign=1).unwrapped)
    vectors = make_vec(cartpole, 3, realign=1)
    vectors.reset(seed=0)
    assert vectors.step(vectors.action_space.sample())[0] in vectors.observation_space
    with pytest.raises(ValueError, match="realign"):
        DreamVectorEnv(1, run, realign=-1)


def test_fidelity_of_realigned_dreams(run: str, tmp_path) -> None:
    model, test_set = load_world(run).model, load_test_set(spec_of(MINIGRID), tmp_path / "set", 4, progress=False)
    table = test_set.table
    windows = choose_windows(table, test_set.succeeding, context=2, horizons=(1, 2, 3, 4), count=12)
    state = observe_context(model, table, windows)
    plain, aligned = (open_loop(model, state, table, windows, realign=n).frames for n in (0, 2))
    reached = windows.steps >= 4
    np.testing.assert_array_equal(plain[:, :2], aligned[:, :2])
    assert (plain[reached, 2:] != aligned[reached, 2:]).any()
    report = measure_fidelity(model, test_set, context=2, horizons=(1, 3), windows=6, realign=1)
    assert report["realign"] == 1 and "open loop, realign 1." in fidelity_table(report)
