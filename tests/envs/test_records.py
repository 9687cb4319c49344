"""Real environments that show several things at once, or one of n: recorded, dreamed, played and measured."""

from __future__ import annotations

import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from dreaming import make_vec
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import worldmodel  # noqa: F401 (registers the environment)
from worldmodel.envs.collect import collect
from worldmodel.envs.fidelity import measure_fidelity, score
from worldmodel.envs.fidelity_metrics import TileVocabulary
from worldmodel.envs.fidelity_table import fidelity_table
from worldmodel.envs.make import make_env, make_vector_env, spec_of
from worldmodel.envs.observations import first_modality, from_frames, modalities_of, to_frames
from worldmodel.envs.open_loop import truth
from worldmodel.envs.pictures import draw_dreams, to_rgb
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import Episode, rollout
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.spaces import observation_spec
from worldmodel.envs.starts import load_world
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import load_test_set
from worldmodel.envs.windows import choose_windows
from worldmodel.errors import UserError
from worldmodel.specs import ObservationSpec

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"
COMPASS = ["minigrid_rgb_direction"]
BESIDE = ["render_beside", "resize64"]


@pytest.mark.parametrize(
    "env_id,wrappers,codec",
    [
        (MINIGRID, COMPASS, "x264rgb"),
        ("CartPole-v1", BESIDE, "x264rgb"),
        ("FrozenLake-v1", None, "npz"),
    ],
)
def test_what_is_recorded_comes_back_to_the_bit(tmp_path, env_id, wrappers, codec):
    spec = spec_of(env_id, wrappers=wrappers)
    collect(spec, tmp_path, 40, num_envs=2, progress=False)
    store = EpisodeStore.open(tmp_path)
    assert store.codec == codec
    env = make_env(env_id, wrappers=wrappers)
    for entry in store.index:  # replayed from its seed, each episode shows what was kept
        episode = store.read(entry["name"])
        observation, _ = env.reset(seed=episode.seed)
        for t in range(episode.length + 1):
            kept = from_frames(env.observation_space, episode.observations[t])
            assert env.observation_space.contains(kept)
            assert (to_frames(env.observation_space, observation) == episode.observations[t]).all()
            if t < episode.length:
                observation, reward, *_ = env.step(episode.actions[t])
                assert reward == pytest.approx(episode.rewards[t])


def test_a_dict_can_be_given_to_a_store_as_it_is(tmp_path):
    space = Dict({"x": Box(-1, 1, (2,), np.float32), "n": Discrete(3)})
    store = EpisodeStore.create(tmp_path, observation_space=space, action_space=Discrete(2))
    frames = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2), "n": np.array([0, 2, 1, 0])}
    back = from_frames(space, store.read(store.add(frames, np.zeros(3, int), np.zeros(3), False, True)).observations)
    assert all((back[name] == frames[name]).all() for name in frames)
    frames["x"][2, 1] = np.nan
    with pytest.raises(UserError, match="not a finite number in the part 'x'"):
        store.add(frames, np.zeros(3, int), np.zeros(3), False, True)


def test_a_dict_of_one_picture_comes_back_too(tmp_path):
    space = Dict({"view": Box(0, 255, (16, 16, 3), np.uint8)})
    store = EpisodeStore.create(tmp_path, observation_space=space, action_space=Discrete(2))
    view = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    frames = store.read(store.add({"view": view}, np.zeros(3, int), np.zeros(3), True, False)).observations
    assert (from_frames(space, frames)["view"] == view).all()


def test_what_cannot_be_kept_is_refused_before_there_is_a_store(tmp_path):
    with pytest.raises(UserError, match="MultiDiscrete"):
        EpisodeStore.create(tmp_path / "new", observation_space=MultiDiscrete([2, 3]), action_space=Discrete(2))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["compass", "lake"])
def test_check_env_passes_without_a_warning(name: str, request) -> None:
    run = request.getfixturevalue(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("worldmodel/Dream-v0", checkpoint=run)
        check_env(env.unwrapped)


@pytest.mark.parametrize("name,env_id,wrappers", [("compass", MINIGRID, COMPASS), ("lake", "FrozenLake-v1", None)])
def test_a_dream_has_the_format_of_the_real_environment(name: str, env_id: str, wrappers, request) -> None:
    mode = AutoresetMode.SAME_STEP
    real = SyncVectorEnv([lambda: make_env(env_id, wrappers=wrappers, max_episode_steps=3)] * 3, autoreset_mode=mode)
    dream = make_vec(request.getfixturevalue(name), 3, horizon=3, autoreset_mode=mode)
    assert dream.single_observation_space == real.single_observation_space
    assert dream.observation_space == real.observation_space
    ended = [0, 0]
    for side, venv in enumerate((real, dream)):
        observations, _ = venv.reset(seed=0)
        for _ in range(8):
            assert venv.observation_space.contains(observations)
            observations, _, terminated, truncated, info = venv.step(venv.action_space.sample())
            for row in np.flatnonzero(terminated | truncated):
                assert info["_final_obs"][row] and venv.single_observation_space.contains(info["final_obs"][row])
                ended[side] += 1
    assert min(ended) >= 6


def test_the_same_seed_gives_the_same_dict_and_pictures_show_the_image(compass: str) -> None:
    def dreamt(seed: int) -> list[dict]:
        venv = make_vec(compass, 4, horizon=9, render_mode="rgb_array")
        seen = [venv.reset(seed=seed)[0]]
        for action in np.random.default_rng(0).integers(0, 7, (6, 4)):
            seen.append(venv.step(action)[0])
        for row, picture in enumerate(venv.render()):
            image = seen[-1]["image"][row]
            factor = len(picture) // len(image)
            assert (picture[::factor, ::factor] == image).all()
        return seen

    for one, two in zip(dreamt(5), dreamt(5), strict=True):
        assert all((one[name] == two[name]).all() for name in ("image", "direction"))
    other = dreamt(6)
    assert any((one["direction"] != two["direction"]).any() for one, two in zip(dreamt(5), other))


def test_returned_arrays_are_the_callers_own(compass: str) -> None:
    venv = make_vec(compass, 2)
    first, _ = venv.reset(seed=0)
    kept = {name: part.copy() for name, part in first.items()}
    for part in first.values():
        part[:] = 1
    observations = from_frames(venv.single_observation_space, venv.get_state().frames)
    assert all((observations[name] == kept[name]).all() for name in kept)


def test_rollouts_and_tables_hold_frames() -> None:
    venv = make_vector_env(MINIGRID, 3, wrappers=COMPASS)
    episodes = [*rollout(venv, RandomPolicy(venv.single_action_space, 0), seeds=range(9), episodes=4)]
    table = FrameTable.from_episodes(episodes, venv.single_action_space)
    spec = observation_spec(venv.single_observation_space)
    assert table.frames.shape[1:] == spec.shape
    directions = {part.name: v for part, v in modalities_of(spec, table.frames[table.index])}["direction"].argmax(1)
    turned = (np.diff(directions) + 4) % 4
    inside = ~table.first[1:]
    right, left = table.action[1:] == 1, table.action[1:] == 0
    assert (turned[inside & right] == 1).all() and (turned[inside & left] == 3).all()
    assert (turned[inside & ~right & ~left] == 0).all()


def test_mixed_frames_are_mixed_in_the_picture_alone() -> None:
    spec = ObservationSpec.record(
        [
            ObservationSpec(name="view", shape=(8, 12, 1)),
            ObservationSpec(name="n", kind="choice", shape=(6,), scale=1.0),
        ]
    )
    view = (np.arange(1, 7, dtype=np.uint8)[:, None] * np.ones((1, 96), np.uint8)).astype(np.uint8)
    frames = np.concatenate([view, np.eye(6, dtype=np.uint8)], axis=1)
    episode = Episode(frames, np.zeros(5, int), np.zeros(5, np.float32), False, True)
    table = FrameTable.from_episodes([episode], Discrete(2))
    batch = Segments(table, 1, 2, seed=3, loose=200, mix=0.5, spec=spec, grain=4).sample()
    loose = batch.frames[int(batch.index.max()) + 1 :].numpy()
    mixed = [row for row in loose if len(np.unique(row[:96])) > 1]
    assert 50 < len(mixed) < 110
    assert (loose[:, 96:].sum(1) == 1).all()


def test_fidelity_tells_modalities_apart_and_pictures_are_drawn(compass: str, tmp_path) -> None:
    world = load_world(compass)
    spec = world.model.config.observation
    test_set = load_test_set(world.environment, episodes=4, folder=tmp_path / "set", progress=False)
    report = measure_fidelity(world.model, test_set, context=3, horizons=(1, 4), windows=12)
    for horizon in ("1", "4"):
        entry = report["horizons"][horizon]
        assert set(entry["modalities"]) == {"image", "direction"}
        for name in ("dream", "closed_loop", "repeat_last_frame"):
            both = entry["frames"][name]["all"]["exact"]
            assert both <= min(entry["modalities"][part][name]["all"]["exact"] for part in ("image", "direction"))
    assert "direction" in fidelity_table(report)
    # The truth itself is exact in all of them, and one that looks the other way is not.
    windows = choose_windows(test_set.table, test_set.succeeding, context=3, horizons=(1, 4), count=12, seed=0)
    real = truth(test_set.table, windows)
    turned = replace(real, frames=real.frames.copy())
    turned.frames[..., -4:] = np.roll(turned.frames[..., -4:], 1, axis=-1)
    vocabulary = TileVocabulary.of(first_modality(spec, test_set.table.frames))
    scored = score(
        {"truth": real, "turned": turned}, test_set.table, windows, shown=None, spec=spec, vocabulary=vocabulary
    )["horizons"]["1"]
    assert scored["frames"]["truth"]["all"]["exact"] == 1 and scored["frames"]["turned"]["all"]["exact"] == 0
    assert scored["modalities"]["image"]["turned"]["all"]["exact"] == 1
    assert scored["modalities"]["direction"]["turned"]["all"]["error"] == 0.5  # two of four numbers, wrong by one
    files = draw_dreams(world.model, test_set, tmp_path / "pictures", count=1, context=3, steps=3)
    assert all(path.stat().st_size > 1000 for path in files)
    assert to_rgb(test_set.table.frames, spec).shape == (len(test_set.table.frames), 56, 56, 3)
