"""Pictures of boundaries, tokens and loops show the numbers that the model gives."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from worldmodel.envs.boundary_pictures import (
    COLOURS,
    TINT,
    boundary_picture,
    draw_boundaries,
    draw_frame,
    first_patches,
    tinted,
)
from worldmodel.envs.chunk_maps import chunk_map
from worldmodel.envs.make import spec_of
from worldmodel.envs.spaces import action_spec, observation_spec, space_from_json
from worldmodel.envs.test_set import load_test_set
from worldmodel.envs.token_pictures import (
    EpisodeTokens,
    draw_counts,
    draw_loops,
    draw_tokens,
    liveliest_episode,
    watch_episode,
    watch_loops,
)
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.presets import preset


def open_set(env_id, folder, **kwargs):
    """A test set and the specs of its spaces."""
    environment = spec_of(env_id, **kwargs)
    spaces = [space_from_json(environment[name]) for name in ("observation_space", "action_space")]
    test_set = load_test_set(environment, folder, episodes=4, progress=False)
    return test_set, observation_spec(spaces[0]), action_spec(spaces[1])


@pytest.fixture(scope="module")
def doorkey(tmp_path_factory):
    return open_set("MiniGrid-DoorKey-5x5-v0", tmp_path_factory.mktemp("set") / "set", max_steps=60)


@pytest.fixture(scope="module")
def model(doorkey):
    """Learned boundaries in the frame and extra ones behind it, so that both counts vary."""
    torch.manual_seed(0)
    config = preset("tiny", *doorkey[1:])
    config = replace(
        config,
        frame=replace(config.frame, boundary="learned"),
        causal=(replace(config.causal[0], extra=1.0),),
    )
    model = WorldModel(config).train()
    table = doorkey[0].table
    for begin in range(0, 80, 8):  # the routers find their quantiles
        model(table.gather(begin + np.arange(16)[None]), torch.arange(1))
    return model.eval()


def read(path):
    return matplotlib.image.imread(path)


def test_each_patch_has_its_chunks_colour():
    frame = np.random.default_rng(0).integers(256, size=(24, 20, 3), dtype=np.uint8)
    snake = np.array([[0, 1, 2], [5, 4, 3], [6, 7, 8]])  # rows go to and fro; the last column is cut off
    picture = tinted(frame, chunk_map(np.array([0, 2, 5, -1]), snake), 8)
    expected = [[0, 0, 1], [2, 1, 1], [2, 2, 2]]
    for y in range(24):
        for x in range(20):
            colour = COLOURS[expected[y // 8][x // 8]]
            np.testing.assert_allclose(picture[y, x], (1 - TINT) * frame[y, x] + TINT * colour, atol=0.51)


def test_numbers_stand_at_first_patches():
    snake = np.array([[0, 1, 2], [5, 4, 3]])
    assert first_patches(np.array([0, 3, 5, -1]), snake) == {0: (0, 0), 1: (1, 2), 2: (1, 0)}


def test_a_frame_is_drawn_with_its_numbers_and_edges():
    axes = Figure().subplots()
    snake = np.array([[0, 1, 2], [5, 4, 3]])
    draw_frame(axes, np.zeros((16, 24, 3), np.uint8), np.array([0, 3, 5, -1]), snake, 8)
    at = {text.get_text(): tuple(np.floor(np.array(text.get_position()) / 8)) for text in axes.texts}
    assert at == {"1": (0, 0), "2": (2, 1), "3": (0, 1)}  # across, down
    (lines,) = axes.collections
    edges = {tuple(map(tuple, segment)) for segment in lines.get_segments()}
    assert edges == {((0, 8), (8, 8)), ((8, 8), (16, 8)), ((16, 8), (24, 8)), ((8, 8), (8, 16))}


def test_a_picture_changes_where_its_boundaries_do(tmp_path):
    frames = np.full((2, 16, 16, 3), 128, np.uint8)
    order = np.arange(4).reshape(2, 2)
    for name, second in (("one", -1), ("two", 2), ("again", 2)):
        starts = np.array([[0, 1], [0, second]])
        rows = {"seen": (frames, starts), "dreamed": (frames, starts)}
        boundary_picture(tmp_path / f"{name}.png", rows, order, patch=8, labels=["a", "b"])
    one, two, again = (read(tmp_path / f"{name}.png") for name in ("one", "two", "again"))
    assert one.shape == two.shape and (two == again).all()
    changed = np.flatnonzero((one != two).any((0, 2)))
    assert len(changed) and changed.min() > one.shape[1] / 2  # the frame to the left is as it was


def test_boundaries_of_a_model_are_drawn(doorkey, model, tmp_path):
    draw_boundaries(model, doorkey[0], tmp_path / "b.png", steps=6, columns=3)
    draw_boundaries(model, doorkey[0], tmp_path / "one.png", steps=6, columns=1)
    wide, narrow = read(tmp_path / "b.png"), read(tmp_path / "one.png")
    assert wide.shape[1] > 2 * narrow.shape[1] and wide.std() > 0.05
    draw_boundaries(model, doorkey[0], tmp_path / "short.png", steps=6, columns=3, context=1000)  # as far as it goes
    assert read(tmp_path / "short.png").shape == wide.shape


def test_the_counts_of_an_episode_are_those_of_the_whole_pass(doorkey, model):
    table = doorkey[0].table
    number = liveliest_episode(doorkey[0])
    seen = watch_episode(model, table, number)
    at = np.arange(table.begin[number], table.begin[number + 1])
    with torch.no_grad():
        whole = model(table.gather(at[None]), torch.zeros(1, dtype=torch.int64))
    np.testing.assert_array_equal(seen.chunks, whole.chunks.valid.sum(1))
    np.testing.assert_array_equal(seen.frames, table.frames[table.index[at]])
    assert seen.patches == 49 and len(seen.main) == len(at)
    # Once a frame, and where the router says, but not more often than it may.
    most = 1 + model.config.causal[0].max_extra
    assert seen.main.min() >= 1 and 1 < seen.main.max() <= most and (seen.main <= 1 + seen.chunks).all()
    extra = int(whole.routing["stage0"].boundary.sum())
    assert len(at) < seen.main.sum() <= len(at) + extra


def test_the_loops_of_an_episode_are_those_of_its_tokens(doorkey, model):
    """Each token's loops stand at its own frame, and a budget holds their sum."""
    table, config = doorkey[0].table, model.config
    loop = replace(config.main.loop, layers="t1", budget=4.0)
    torch.manual_seed(0)
    looped = WorldModel(replace(config, main=replace(config.main, loop=loop))).eval()
    looped.load_state_dict(model.state_dict(), strict=False)
    number = liveliest_episode(doorkey[0])
    loops, main = watch_loops(looped, table, number), watch_episode(looped, table, number).main
    np.testing.assert_array_equal((loops > 0).sum(1), main)
    assert loops.shape[1] == main.max() > 1
    # Whatever a frame leaves over or overdraws goes into the next one: the sum is held, frame after frame.
    spent, granted = loops.sum(1).cumsum(), 4.0 * np.arange(1, len(main) + 1)
    assert np.abs(spent - granted).max() <= loop.max_loops, (spent, granted)
    assert loops[main > 1, 1].mean() < loops[:, 0].mean(), "a second token, which is rare, has what the first one left"
    with pytest.raises(ValueError, match="no looped core"):
        watch_loops(model, table, number)


def test_a_frame_that_comes_again_stands_on_grey(tmp_path):
    frames = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    again = frames.copy()
    again[3] = again[2]
    for name, shown in (("new", frames), ("again", again)):
        draw_counts(tmp_path / f"{name}.png", {"tokens": np.arange(1, 7)}, shown, "tokens")
    new, old = (read(tmp_path / f"{name}.png") for name in ("new", "again"))
    middle = slice(int(0.52 * new.shape[1]), int(0.60 * new.shape[1]))  # of frame 3
    assert (new[new.shape[0] // 3, middle] == 1).all(-1).mean() > 0.8
    assert (old[old.shape[0] // 3, middle] == 1).all(-1).mean() < 0.2


def test_curves_and_loops_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    for T in (3, 40):
        frames = rng.integers(256, size=(T, 8, 8, 3), dtype=np.uint8)
        chunks, main = rng.integers(1, 6, T), rng.integers(1, 3, T)
        draw_tokens(tmp_path / "a.png", EpisodeTokens(frames, chunks, main, patches=4))
        draw_tokens(tmp_path / "b.png", EpisodeTokens(frames, chunks, main + 1, patches=4))
        loops = np.where(np.arange(3) < main[:, None], rng.integers(1, 9, (T, 3)), 0)
        draw_loops(tmp_path / "c.png", loops, frames)
        draw_loops(tmp_path / "d.png", np.where(loops == 3, 4, loops), frames)
        a, b, c, d = (read(tmp_path / f"{name}.png") for name in "abcd")
        assert a.shape == b.shape == c.shape == d.shape and (a != b).any()
        assert (c != d).any() == (loops == 3).any()
        # The thumbnails below are the same whatever is above.
        band = slice(-a.shape[1] // 20, None)
        assert (a[band] == c[band]).all() and a[band].std() > 0.1


def test_vectors_have_no_pictures(tmp_path):
    cartpole, observation, action = open_set("CartPole-v1", tmp_path / "set")
    vectors = WorldModel(preset("tiny", observation, action)).eval()
    with pytest.raises(UserError, match="no pictures of these observations"):
        watch_episode(vectors, cartpole.table, 0)
