"""Pictures show what they say: the right pixels in the right place, and chunks where chunks are."""

import matplotlib.image
import numpy as np
import pytest

from worldmodel.envs.make import make_from_spec, spec_of
from worldmodel.envs.pictures import (
    AWAKE,
    DREAMING,
    GAP,
    draw_dreams,
    film_strip,
    to_rgb,
    truth_dream_error,
)
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.test_set import load_test_set
from worldmodel.envs.video import read_video
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.specs import ObservationSpec


def test_to_rgb():
    grey = np.full((2, 4, 4, 1), 7, np.uint8)
    assert to_rgb(grey, ObservationSpec(shape=(4, 4, 1))).tolist() == np.full((2, 4, 4, 3), 7).tolist()
    grid = np.full((7, 7, 3), 5, np.uint8)
    assert (to_rgb(grid, ObservationSpec(shape=(7, 7, 3), kind="grid", scale=10)) == 128).all()
    two = to_rgb(np.full((4, 4, 2), 9, np.uint8), ObservationSpec(shape=(4, 4, 2)))
    assert two.shape == (4, 4, 3) and (two[..., 2] == 0).all() and (two[..., 0] == 9).all()
    with pytest.raises(UserError, match="no pictures of these observations"):
        to_rgb(np.zeros(4), ObservationSpec(shape=(4,), dtype="float32", kind="vector"))


def test_truth_dream_error_side_by_side():
    true, dream = np.full((2, 8, 8, 3), 200, np.uint8), np.full((2, 8, 8, 3), 250, np.uint8)
    frames = truth_dream_error(true, dream, dreaming=np.array([False, True]))
    assert frames.shape == (2, 8, 24 + 2 * GAP, 3)
    assert (frames[:, :, :8] == 200).all() and (frames[:, :, 8 + GAP : 16 + GAP] == 250).all()
    assert (frames[:, :, -8:] == 50).all()
    assert tuple(frames[0, 0, 8]) == AWAKE and tuple(frames[1, 0, 8]) == DREAMING


def test_a_strip_changes_with_what_it_shows(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    chunks = np.array([[[0, 0], [1, 1]]] * 2 + [[[0, 0], [0, 0]]])
    film_strip(tmp_path / "plain.png", true, true)
    film_strip(tmp_path / "chunks.png", true, true, dream_chunks=chunks)
    film_strip(tmp_path / "reward.png", true, true, true_reward=np.array([0, 0, 0.9]), dream_reward=np.zeros(3))
    plain, chunks, reward = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("plain", "chunks", "reward"))
    assert plain.shape[2] == 4 and plain.shape[0] > 100
    assert plain.shape == chunks.shape and (plain != chunks).any()
    assert reward.shape != plain.shape or (reward != plain).any()
    with pytest.raises(ValueError, match="shape"):
        film_strip(tmp_path / "no.png", true, true[:2])


def test_dreams_are_drawn(tmp_path):
    spec = spec_of("MiniGrid-DoorKey-5x5-v0", max_steps=60)
    test_set = load_test_set(spec, tmp_path / "set", episodes=4, progress=False)
    env = make_from_spec(spec)
    model = WorldModel(preset("tiny", observation_spec(env.observation_space), action_spec(env.action_space))).eval()
    files = draw_dreams(model, test_set, tmp_path / "pictures", count=2, steps=5)
    assert [file.name for file in files] == ["dream_0.png", "dream_1.png", "dreams.mp4"]
    assert all(file.stat().st_size > 1000 for file in files)
    frames = read_video(files[-1])
    assert len(frames) == 2 * (8 + 5 + 8)
    longest = int(np.diff(test_set.table.begin).max())
    files = draw_dreams(model, test_set, tmp_path / "short", count=1, steps=5, context=longest)
    assert len(read_video(files[-1])) == longest // 3 + 5 + 8  # a context that leaves something to dream
