"""The dream behaves as Gymnasium says, and as `SyncVectorEnv` of the real environment does."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from dreaming import actions_of, close, make_vec, play
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import worldmodel  # noqa: F401 (registers the environment)
from worldmodel.envs.contexts import load_contexts, save_contexts
from worldmodel.envs.dream import DreamEnv, DreamVectorEnv
from worldmodel.envs.make import make_env
from worldmodel.errors import UserError
from worldmodel.state import DreamState

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"


# -- Gymnasium's own checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("starts", ["initial", "anywhere"])
def test_check_env_passes_without_a_warning(run: str, starts: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("worldmodel/Dream-v0", checkpoint=run, starts=starts)
        check_env(env.unwrapped)
        make_vec(run, 2)


def test_spaces_are_those_of_the_real_environment(run: str) -> None:
    real, venv = make_env(MINIGRID), make_vec(run, 3)
    assert venv.single_observation_space == real.observation_space
    assert venv.single_action_space == real.action_space
    assert venv.observation_space.shape == (3, 56, 56, 3)
    # Seeding one environment's space leaves another's alone, though both dream in the same loaded run.
    a, b = DreamEnv(run), DreamEnv(run)
    assert a.action_space is not b.action_space


# -- Seeds ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(run: str) -> None:
    venv = make_vec(run, 4, horizon=6)
    actions = actions_of(venv, 15)  # long enough for every row to restart by itself, twice
    first = [venv.reset(seed=7)[0], *play(venv, actions)]
    again = [venv.reset(seed=7)[0], *play(venv, actions)]
    fresh = make_vec(run, 4, horizon=6)
    other = [fresh.reset(seed=7)[0], *play(fresh, actions)]
    for one, two, three in zip(first, again, other):
        for x, y, z in zip(one, two, three):
            np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(x, z)


def test_other_seeds_give_other_dreams(run: str) -> None:
    venv = make_vec(run, 8, horizon=50)
    venv.reset(seed=0)
    actions = np.zeros((6, 8), dtype=np.int64)
    frames = np.stack([step[0] for step in play(venv, actions)])
    assert len({frames[:, row].tobytes() for row in range(8)}) == 8
    venv.reset(seed=100)
    assert (frames != np.stack([step[0] for step in play(venv, actions)])).any()


def test_a_row_does_not_depend_on_its_neighbours(run: str) -> None:
    wide = make_vec(run, 5, horizon=7)
    actions = actions_of(wide, 20)
    frames = [wide.reset(seed=[3, 1, 4, 15, 9])[0]]
    steps = play(wide, actions)
    for row, seed in ((1, 1), (3, 15)):
        alone = make_vec(run, 1, horizon=7)
        single = DreamEnv(run, horizon=7)
        assert close(alone.reset(seed=seed)[0][0], frames[0][row])
        assert close(single.reset(seed=seed)[0], frames[0][row])
        for t, (observations, rewards, terminated, truncated) in enumerate(steps):
            o, r, end, cut, _ = alone.step(actions[t, row : row + 1])
            assert close(o[0], observations[row])
            assert r[0] == pytest.approx(rewards[row], abs=1e-5)
            assert (end[0], cut[0]) == (terminated[row], truncated[row])
            o, r, end, cut, _ = single.step(actions[t, row])
            if end or cut:
                o, _ = single.reset()
            assert close(o, observations[row])
            assert (end, cut) == (terminated[row], truncated[row])


def test_unseeded_reset_goes_on_with_the_rows_own_random_numbers(run: str) -> None:
    venv = make_vec(run, 3)
    venv.reset(seed=5)
    then = venv.reset()[0]
    venv.reset(seed=5)
    np.testing.assert_array_equal(venv.reset()[0], then)
    assert venv.np_random_seed == (5, 6, 7)


# -- What is handed out -----------------------------------------------------------------------------------------------


def test_returned_arrays_are_the_callers_own(run: str) -> None:
    venv = make_vec(run, 2, horizon=2, autoreset_mode="Disabled")
    observations, _ = venv.reset(seed=0)
    kept = observations.copy()
    observations[:] = 0
    again = venv.reset(options={"reset_mask": np.array([True, False])})[0]
    np.testing.assert_array_equal(again[1], kept[1])
    assert venv.step(np.zeros(2, dtype=np.int64))[1].dtype == np.float64


def test_render(run: str, cartpole: str) -> None:
    env = gymnasium.make("worldmodel/Dream-v0", checkpoint=run, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (224, 224, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[::4, ::4], observation)
    venv = make_vec(run, 2, render_mode="rgb_array")
    observations, _ = venv.reset(seed=0)
    pictures = venv.render()
    assert isinstance(pictures, tuple) and len(pictures) == 2
    np.testing.assert_array_equal(pictures[1][::4, ::4], observations[1])
    assert DreamVectorEnv(1, cartpole).metadata["render_modes"] == []
    with pytest.raises(UserError, match="render_mode"):
        DreamEnv(cartpole, render_mode="rgb_array")


def test_vector_observations(cartpole: str) -> None:
    venv = make_vec(cartpole, 3)
    observations, _ = venv.reset(seed=0)
    assert observations in venv.observation_space
    for _ in range(5):
        observations, *_ = venv.step(venv.action_space.sample())
        assert observations.dtype == np.float32 and observations in venv.observation_space


def test_snapshots_go_back_and_branch(run: str) -> None:
    venv = make_vec(run, 3, horizon=5)
    venv.reset(seed=0)
    actions = actions_of(venv, 12)
    play(venv, actions[:2])
    here = venv.get_state()
    once = play(venv, actions[2:])
    venv.set_state(here)
    for a, b in zip(once, play(venv, actions[2:])):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)

    # One row in many rows: with the same chance the same future, with other chance other ones.
    wide = DreamVectorEnv(6, run, horizon=5)
    wide.set_state(here[[1] * 6])
    frames = wide.step(np.full(6, actions[2, 1]))[0]
    assert all(close(frames[row], once[0][0][1]) for row in range(6))
    wide.set_state(here[[1] * 6].reseeded(range(6)))
    frames = wide.step(np.full(6, actions[2, 1]))[0]
    assert len({frame.tobytes() for frame in frames}) > 1

    assert here[(2, 0)].frames.tobytes() == here[[2, 0]].frames.tobytes() and len(here[range(2)]) == 2
    env = DreamEnv(run, horizon=5)
    env.set_state(here[[1]])
    assert close(env.step(actions[2, 1])[0], once[0][0][1])
    with pytest.raises(ValueError, match="3 rows"):
        wide.set_state(here)


def test_snapshots_of_another_run_are_refused(run: str, cartpole: str, compass: str) -> None:
    """By what they show, or by what is remembered of it; the environment goes on as if nothing had been."""
    venv, twin, *others = (make_vec(name, 2) for name in (run, run, cartpole, compass))
    for each in (venv, twin, *others):
        each.reset(seed=0)
    here = venv.get_state()
    wider = DreamState(here.state.tensors | {"feature": torch.zeros(2, 7)})
    longer = DreamState(here.state.tensors | {"deeper.count": torch.zeros(2)})
    strangers = {"'frame'": [other.get_state() for other in others]}
    strangers |= {"'feature'": [replace(here, state=wider)], "'deeper.count'": [replace(here, state=longer)]}
    for name, snapshots in strangers.items():
        for snapshot in snapshots:
            with pytest.raises(ValueError, match=f"the snapshot is of another run: a row's {name}"):
                venv.set_state(snapshot)
            with pytest.raises(ValueError, match="another run"):
                DreamEnv(run).set_state(snapshot[[0]])
    for one, other in zip(*(play(each, np.zeros((2, 2), np.int64)) for each in (venv, twin))):
        for x, y in zip(one, other):
            np.testing.assert_array_equal(x, y)


def test_features_instead_of_pixels(run: str) -> None:
    pixels, features = make_vec(run, 4, horizon=6), make_vec(run, 4, horizon=6)
    pixels.reset(seed=0)
    feature = features.reset_tensor(seed=0)
    assert feature.shape == (4, features.model.feature_width)
    for a in actions_of(pixels, 10):
        observations, rewards, terminated, truncated, _ = pixels.step(a)
        feature, reward, end, cut, info = features.step_tensor(torch.from_numpy(a))
        np.testing.assert_array_equal(rewards, reward.numpy())
        np.testing.assert_array_equal(terminated, end.numpy())
        np.testing.assert_array_equal(truncated, cut.numpy())
        kept = ~(end | cut)
        torch.testing.assert_close(info["final_feature"][kept], feature[kept])
        np.testing.assert_array_equal(features.get_state().frames, observations)


# -- What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.array([0, 7]), "7 of row 1"),
        (np.array([-1, 0]), "-1 of row 0"),
        (np.array([0.5, 1.0]), "integers"),
        (np.array([0]), "shape"),
        (np.zeros((2, 1), dtype=np.int64), "shape"),
    ],
)
def test_actions_outside_the_space_are_refused(run: str, actions: np.ndarray, words: str) -> None:
    venv = make_vec(run, 2)
    venv.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match=words):
        venv.step(actions)


def test_use_before_reset_is_refused(run: str) -> None:
    venv = make_vec(run, 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        venv.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match="3 seeds"):
        venv.reset(seed=[1, 2, 3])


def test_a_bad_run_is_one_clear_sentence(run: str, cartpole: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        gymnasium.make("worldmodel/Dream-v0", checkpoint=str(tmp_path / "nothing"))
    for name in ("config.json", "world_model.safetensors", "contexts.npz"):
        copy = shutil.copytree(run, tmp_path / f"no {name}")
        (copy / name).unlink()
        with pytest.raises(UserError, match=name):
            DreamEnv(copy)
        copy = shutil.copytree(run, tmp_path / f"half of {name}")
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=name):
            DreamEnv(copy)
    mixed = shutil.copytree(run, tmp_path / "mixed")
    shutil.copy(Path(cartpole) / "contexts.npz", mixed / "contexts.npz")
    with pytest.raises(UserError, match="do not fit"):
        DreamEnv(mixed)
    short = shutil.copytree(run, tmp_path / "short")
    contexts = load_contexts(short / "contexts.npz")
    save_contexts(short / "contexts.npz", contexts[contexts.initial])
    with pytest.raises(UserError, match="use initial"):
        DreamEnv(short, starts="anywhere")
    for kwargs in ({"starts": "middle"}, {"horizon": 0}, {"num_envs": 0}, {"autoreset_mode": "never"}):
        with pytest.raises(ValueError):
            DreamVectorEnv(**{"num_envs": 1, "checkpoint": run, **kwargs})


def test_a_run_is_loaded_once_and_again_when_it_changes(run: str, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    model = DreamEnv(copy).row.model
    assert DreamVectorEnv(2, copy).model is model
    shutil.copy(Path(run) / "world_model.safetensors", tmp_path / "new")
    (tmp_path / "new").replace(copy / "world_model.safetensors")
    assert DreamEnv(copy).row.model is not model


# -- Other people's code ----------------------------------------------------------------------------------------------


def test_episode_statistics_wrappers(run: str) -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("worldmodel/Dream-v0", checkpoint=run, horizon=5))
    env.reset(seed=0)
    total, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(0)
        total, ended = total + reward, terminated or truncated
    assert info["episode"]["r"] == pytest.approx(total)

    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        venv = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_vec(run, 3, horizon=5, autoreset_mode=mode))
        venv.reset(seed=0)
        lengths = np.zeros(3, dtype=int)
        ended = np.zeros(3, bool)
        for _ in range(14):
            if mode == AutoresetMode.NEXT_STEP:
                lengths -= ended  # the step that only restarts a row is none of its episode's
            *_, terminated, truncated, info = venv.step(np.zeros(3, dtype=np.int64))
            ended = terminated | truncated
            lengths += 1
            if ended.any():
                np.testing.assert_array_equal(info["episode"]["l"][ended], lengths[ended])
                lengths[ended] = 0


def test_the_example_runs(run: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "step_a_dream.py"
    printed = subprocess.run([sys.executable, example, run], capture_output=True, text=True, check=True).stdout
    assert "one dream:" in printed and "64 dreams:" in printed and "instead of" in printed


def test_stable_baselines3_trains_on_it_unchanged(run: str) -> None:
    ppo = pytest.importorskip("stable_baselines3").PPO
    env = gymnasium.make("worldmodel/Dream-v0", checkpoint=run)
    agent = ppo("CnnPolicy", env, n_steps=500, batch_size=250, n_epochs=1, seed=0)
    before = next(agent.policy.parameters()).clone()
    agent.learn(2000)
    assert agent.num_timesteps == 2000 and len(agent.ep_info_buffer) > 10
    assert not torch.equal(before, next(agent.policy.parameters()))
