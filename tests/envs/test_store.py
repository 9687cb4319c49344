import json
import shutil
import warnings

import last_action_env
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.make import make_vector_env, spec_of
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import episode_seeds, rollout
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError

IMAGES = Box(0, 255, (17, 23, 3), np.uint8)


def played(env_id, episodes=3, **kwargs):
    venv = make_vector_env(env_id, 2, **kwargs)
    policy = RandomPolicy(venv.single_action_space, episode_seeds(0))
    yield from rollout(venv, policy, seeds=episode_seeds(0), episodes=episodes)
    venv.close()


def random_arrays(length, space=IMAGES, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length + 1, *space.shape)).astype(space.dtype)
    return {
        "frames": frames,
        "actions": rng.integers(0, 4, length),
        "rewards": rng.normal(size=length),
        "terminated": bool(rng.integers(2)),
        "truncated": False,
    }


def new_store(root, observation_space=IMAGES, action_space=None):
    return EpisodeStore.create(root, observation_space=observation_space, action_space=action_space or Discrete(4))


def assert_equal(one, other):
    for field in ("observations", "actions", "rewards"):
        a, b = getattr(one, field), getattr(other, field)
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all(), field
    for field in ("terminated", "truncated", "seed"):
        assert getattr(one, field) == getattr(other, field), field


@pytest.mark.parametrize(
    ("env_id", "wrappers", "codec"),
    [
        ("MiniGrid-Empty-Random-6x6-v0", None, "x264rgb"),
        ("MiniGrid-DoorKey-5x5-v0", ["minigrid_grid"], "npz"),
        ("CartPole-v1", None, "npz"),
        ("Pendulum-v1", None, "npz"),
    ],
)
def test_real_episodes_return_bit_for_bit(tmp_path, env_id, wrappers, codec):
    store = EpisodeStore.create(tmp_path, spec_of(env_id, wrappers))
    assert store.codec == codec
    episodes = list(played(env_id, wrappers=wrappers))
    names = [store.add_episode(episode) for episode in episodes]
    assert names == ["000000", "000001", "000002"]
    again = EpisodeStore.open(tmp_path)
    assert len(again) == 3 and again.steps == sum(e.length for e in episodes)
    assert again.environment == store.environment
    for entry, episode, read in zip(again.index, episodes, again.episodes(), strict=True):
        assert_equal(read, episode)
        assert entry["length"] == episode.length and entry["seed"] == episode.seed
        assert entry["return"] == pytest.approx(episode.total_reward)


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3, 4]), length=st.integers(1, 9)
)
def test_images_of_any_size_return_bit_for_bit(tmp_path_factory, height, width, channels, length):
    space = Box(0, 255, (height, width, channels), np.uint8)
    store = new_store(tmp_path_factory.mktemp("store"), space)
    arrays = random_arrays(length, space)
    read = store.read(store.add(**arrays, seed=7))
    assert (read.observations == arrays["frames"]).all()
    assert (read.actions == arrays["actions"]).all() and read.actions.dtype == np.int64
    assert (read.rewards == arrays["rewards"].astype(np.float32)).all() and read.rewards.dtype == np.float32
    assert (read.terminated, read.truncated, read.seed) == (arrays["terminated"], False, 7)


@pytest.mark.parametrize("action_space", [MultiDiscrete([3, 4], start=[1, 0]), Box(-2, 2, (3,))], ids=str)
def test_other_actions(tmp_path, action_space):
    store = new_store(tmp_path, Box(-np.inf, np.inf, (5,), np.float32), action_space)
    actions = np.stack([action_space.sample() for _ in range(6)])
    store.add(np.zeros((7, 5), np.float32), actions, np.zeros(6), False, True)
    (read,) = EpisodeStore.open(tmp_path).episodes()
    assert (read.actions == actions).all() and read.actions.dtype == action_space.dtype


def changed(**changes):
    return random_arrays(5) | changes


NAN = np.array([0, 1, np.nan, 3, 4])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(frames=np.zeros((5, 17, 23, 3), np.uint8)), "5 actions need 6 frames"),
        (changed(frames=np.zeros((6, 23, 17, 3), np.uint8)), "shape"),
        (changed(frames=np.zeros((6, 17, 23, 3), np.float32)), "float32"),
        (changed(rewards=np.zeros(6)), "rewards"),
        (changed(rewards=NAN), "rewards.*finite"),
        (changed(rewards=np.array(["a"] * 5)), "rewards.*finite"),
        (changed(actions=np.zeros((5, 1), int)), "actions have the shape"),
        (changed(actions=np.array([0, 1, 2, 3, 4])), "0 to 4"),
        (changed(actions=NAN), "whole numbers"),
        (changed(actions=np.zeros(0, int), rewards=np.zeros(0), frames=np.zeros((1, 17, 23, 3), np.uint8)), "at least"),
        (changed(actions=3), "at least"),
    ],
)
def test_bad_episodes_are_refused_in_one_sentence_and_leave_no_trace(tmp_path, arrays, message):
    store = new_store(tmp_path)
    with pytest.raises(UserError, match=message):
        store.add(**arrays)
    assert len(EpisodeStore.open(tmp_path)) == 0


def test_nan_observations_are_refused(tmp_path):
    store = new_store(tmp_path, Box(-np.inf, np.inf, (2,), np.float32))
    frames = np.zeros((3, 2), np.float32)
    frames[1, 1] = np.nan
    with pytest.raises(UserError, match=r"frames.*finite"):
        store.add(frames, np.zeros(2, int), np.zeros(2), False, False)


def test_a_store_is_not_made_twice(tmp_path):
    new_store(tmp_path)
    with pytest.raises(UserError, match="holds a store already"):
        new_store(tmp_path)
    with pytest.raises(UserError, match="spec, or"):
        EpisodeStore.create(tmp_path / "other")
    with pytest.raises(UserError, match="no store can be made"):
        new_store(tmp_path / "index.json" / "below")


INDEX = {"format_version": 1, "environment": {}, "codec": "npz", "episodes": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not an episode store"),
        ("", "cut off"),
        ('{"format_version": 1, "envir', "cut off"),
        ("[]", "not the index"),
        ("null", "not the index"),
        (json.dumps({"format_version": 1}), "not the index"),
        (json.dumps(INDEX), "not the index"),
        (json.dumps(INDEX | {"episodes": 3}), "not the index"),
        (json.dumps(INDEX | {"format_version": 2}), "format version 2"),
        (json.dumps(INDEX | {"codec": "avi"}), "avi"),
        (json.dumps(INDEX | {"environment": {"id": None, "observation_space": {}}}), "action_space"),
        (json.dumps(INDEX | {"environment": {"id": None, "observation_space": {}, "action_space": {}}}), "description"),
    ],
)
def test_a_foreign_or_broken_index_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        EpisodeStore.open(tmp_path)


@pytest.fixture(scope="module")
def three_episodes(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    store = new_store(root)
    for seed in range(3):
        store.add(**random_arrays(6, seed=seed), seed=seed)
    return root


def with_damage(root, three_episodes, name, damage):
    """Put one file of a copy of the store through `damage`; the seeds that can still be read, and the warnings."""
    shutil.copytree(three_episodes, root, dirs_exist_ok=True)
    path = root / "episodes" / name
    path.write_bytes(damage(path.read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        episodes = list(EpisodeStore.open(root).episodes())
    for episode in episodes:
        assert (episode.observations == random_arrays(6, seed=episode.seed)["frames"]).all()
    return [e.seed for e in episodes], [str(w.message) for w in caught]


@pytest.mark.parametrize("name", ["000001.mkv", "000001.npz"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"nonsense" * 50])
def test_a_damaged_episode_is_named_and_skipped(tmp_path, three_episodes, name, damage):
    seeds, messages = with_damage(tmp_path, three_episodes, name, damage)
    assert seeds == [0, 2]
    assert len(messages) == 1 and "000001" in messages[0] and "damaged" in messages[0]


def test_a_missing_episode_is_named_and_skipped(tmp_path, three_episodes):
    shutil.copytree(three_episodes, tmp_path, dirs_exist_ok=True)
    (tmp_path / "episodes" / "000001.mkv").unlink()
    with pytest.warns(UserWarning, match="000001"):
        assert [e.seed for e in EpisodeStore.open(tmp_path).episodes()] == [0, 2]


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(["000001.mkv", "000001.npz"]), place=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_no_flipped_bit_changes_an_episode_unnoticed(tmp_path_factory, three_episodes, name, place, bit):
    def flip(content):
        data = bytearray(content)
        data[int(place * len(data))] ^= 1 << bit
        return bytes(data)

    seeds, messages = with_damage(tmp_path_factory.mktemp("flipped"), three_episodes, name, flip)
    assert (seeds, len(messages)) in (([0, 1, 2], 0), ([0, 2], 1))


def test_an_episode_that_never_reached_the_index_is_written_over(tmp_path):
    store = new_store(tmp_path)
    store.add(**random_arrays(6, seed=0), seed=0)
    kept = (tmp_path / "index.json").read_bytes()
    store.add(**random_arrays(9, seed=1), seed=1)
    (tmp_path / "index.json").write_bytes(kept)  # killed before the index was moved to its place
    store = EpisodeStore.open(tmp_path)
    assert len(store) == 1
    store.add(**random_arrays(3, seed=2), seed=2)
    assert [e.seed for e in EpisodeStore.open(tmp_path).episodes()] == [0, 2]


def test_numpys_numbers_are_seeds_too_and_what_cannot_be_written_is_not_kept(tmp_path):
    store = new_store(tmp_path)
    store.add(**random_arrays(6), seed=np.int64(3))
    with pytest.raises((TypeError, ValueError)):
        store.add(**random_arrays(6), seed="three")
    store.add(**random_arrays(6), seed=4)
    assert [e.seed for e in EpisodeStore.open(tmp_path).episodes()] == [3, 4]


def test_two_who_fill_one_store_lose_nothing(tmp_path):
    one, other = new_store(tmp_path), EpisodeStore.open(tmp_path)
    one.add(**random_arrays(6, seed=0), seed=0)
    with pytest.raises(UserError, match=r"somebody else has added to .*open it anew"):
        other.add(**random_arrays(9, seed=1), seed=1)
    one.add(**random_arrays(3, seed=2), seed=2)
    other = EpisodeStore.open(tmp_path)
    other.add(**random_arrays(9, seed=1), seed=1)
    assert [e.seed for e in EpisodeStore.open(tmp_path).episodes()] == [0, 2, 1]


def test_last_action_world_fits_the_smallest_video(tmp_path):
    store = EpisodeStore.create(tmp_path, spec_of(last_action_env.ID))
    assert store.codec == "x264rgb"
