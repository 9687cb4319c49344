import itertools
from dataclasses import replace

import last_action_env
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from last_action_env import NO_ACTION, shown_action, shown_tag, shown_time

from worldmodel.envs.collect import collect
from worldmodel.envs.make import make_vector_env, spec_of
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import Episode, episode_seeds, rollout
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.spaces import observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.presets import preset
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import TrainConfig

SHOWN = observation_spec(last_action_env.LastActionEnv.observation_space)


def played(episodes=20, **kwargs):
    venv = make_vector_env(last_action_env.ID, 3, **kwargs)
    policy = RandomPolicy(venv.single_action_space, episode_seeds(0))
    return list(rollout(venv, policy, seeds=episode_seeds(0), episodes=episodes)), venv.single_action_space


@pytest.fixture(scope="module")
def table():
    return FrameTable.from_episodes(*played())


@pytest.fixture(scope="module")
def sparse_table():
    return FrameTable.from_episodes(*played(60, max_length=20, sparse=True))


def shown(batch):
    """What each frame of a batch shows: last action, time and tag, `(B, T)` each."""
    frames = batch.frames[batch.index].numpy()
    return shown_action(frames), shown_time(frames), shown_tag(frames)


def test_the_table_holds_every_episode_in_the_timing_of_arrival(table):
    episodes, _ = played()
    assert table.num_episodes == len(episodes) and len(table) == sum(e.length + 1 for e in episodes)
    for k, episode in enumerate(episodes):
        part = slice(table.begin[k], table.begin[k + 1])
        assert (table.frames[table.index[part]] == episode.observations).all()
        assert table.action[part].tolist() == [0, *episode.actions]
        assert table.reward[part].tolist() == [0, *episode.rewards]
        assert table.terminated[part].tolist() == [False] * episode.length + [episode.terminated]
        assert table.first[part].tolist() == [True] + [False] * episode.length


def test_loose_frames_come_along_rare_ones_as_often_as_common_ones(sparse_table):
    counts = np.zeros(len(sparse_table.frames))
    known = {frame.tobytes(): i for i, frame in enumerate(sparse_table.frames)}
    for batch in itertools.islice(Segments(sparse_table, 2, 4, loose=10), 400):
        pointed = int(batch.index.max()) + 1
        assert len(batch.frames) == pointed + 10
        for frame in batch.frames[pointed:]:
            counts[known[frame.numpy().tobytes()]] += 1
    expected = 4000 / len(counts)
    assert abs(counts - expected).max() < 6 * expected**0.5


def test_rows_are_drawn_to_rare_frames():
    """Of rows that all aim at one, each distinct frame gets as many, however seldom it comes."""
    shows = np.zeros(200, np.uint8)
    shows[[50, 90, 130, 170]] = 1, 2, 3, 4
    episode = Episode(shows[:, None], np.zeros(199, int), np.zeros(199, np.float32), False, True)
    table = FrameTable.from_episodes([episode], last_action_env.LastActionEnv.action_space)
    rows = 4000  # of two frames, so that the one aimed at is the second, but where it begins the episode
    batch = Segments(table, rows, 2, end_share=0, rare_share=1).sample()
    aimed = np.bincount(batch.frames[batch.index[:, 1]][:, 0].numpy(), minlength=5)
    assert abs(aimed - rows / 5).max() < 6 * (rows / 5) ** 0.5
    half = Segments(table, rows, 2, end_share=0, rare_share=0.5).sample()
    rare = (half.frames[half.index[:, 1]][:, 0] > 0).float().mean()
    assert 0.36 < rare < 0.46  # four fifths of the half that aims, and one in fifty of the others


def test_mixed_frames_are_a_rectangle_of_one_frame_in_another():
    rng = np.random.default_rng(0)
    frames = np.arange(1, 7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 12, 1), np.uint8)
    episode = Episode(frames, np.zeros(5, int), np.zeros(5, np.float32), False, True)
    table = FrameTable.from_episodes([episode], last_action_env.LastActionEnv.action_space)
    batch = Segments(
        table, 1, 2, seed=int(rng.integers(99)), loose=300, mix=0.5, spec=ObservationSpec(shape=(8, 12, 1)), grain=4
    ).sample()
    loose = batch.frames[int(batch.index.max()) + 1 :, :, :, 0].numpy()
    mixed = [frame for frame in loose if len(np.unique(frame)) > 1]
    assert 90 < len(mixed) < 160  # half of them, but for those that met themselves or were covered whole
    for frame in mixed:
        assert len(np.unique(frame)) == 2
        cells = frame[::4, ::4]
        assert (frame == cells.repeat(4, 0).repeat(4, 1)).all()
        assert any(is_rectangle(cells == value) for value in np.unique(cells)), (
            "one of the two values fills a rectangle"
        )
    assert (table.frames == frames).all(), "the table itself is left alone"


def is_rectangle(mask):
    rows, columns = mask.any(1), mask.any(0)
    return bool((mask == np.outer(rows, columns)).all() and contiguous(rows) and contiguous(columns))


def contiguous(flags):
    where = np.flatnonzero(flags)
    return bool((np.diff(where) == 1).all())


def test_pieces_never_cut_through_the_patches_of_a_model_that_has_grown():
    config = preset("tiny", ObservationSpec(shape=(64, 96, 3)), ActionSpec())
    config = replace(config, frame=replace(config.frame, grown=1))
    frames = np.full((3, 64, 96, 3), np.arange(3)[:, None, None, None], dtype=np.uint8)
    episode = Episode(frames, np.zeros(2, int), np.zeros(2, np.float32), False, True)
    table = FrameTable.from_episodes([episode], Discrete(2))
    training = TrainConfig(batch_size=1, length=2, loose=40, mix=1.0)
    batch = Segments.for_training(table, config, training).sample()
    loose = batch.frames[int(batch.index.max()) + 1 :].numpy()
    assert any(len(np.unique(frame)) == 2 for frame in loose)
    patch = 2 * config.frame.patch
    cells = loose.reshape(len(loose), 64 // patch, patch, 96 // patch, patch, 3)
    assert (cells == cells[:, :, :1, :, :1, :1]).all()


def test_equal_frames_are_kept_once():
    frames = np.arange(4, dtype=np.float32).reshape(2, 2)[[0, 1, 0, 0]]
    episode = Episode(frames, np.zeros(3, int), np.zeros(3, np.float32), False, True)
    table = FrameTable.from_episodes([episode, episode], last_action_env.LastActionEnv.action_space)
    assert table.frames.tolist() == [[0, 1], [2, 3]] and table.index.tolist() == [0, 1, 0, 0] * 2


def test_an_empty_store_is_refused(tmp_path):
    store = EpisodeStore.create(tmp_path, spec_of(last_action_env.ID))
    with pytest.raises(UserError, match="no episodes"):
        FrameTable.from_store(store)


def test_a_store_of_nothing_but_damage_is_refused(tmp_path):
    store = collect(last_action_env.ID, tmp_path, 1, progress=False)
    for path in (tmp_path / "episodes").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match="none of the episodes"):
        FrameTable.from_store(store)


@settings(deadline=None, max_examples=60)
@given(batch_size=st.integers(1, 8), length=st.integers(1, 40), seed=st.integers(0, 1000), end_share=st.floats(0, 1))
def test_every_row_is_made_of_whole_pieces(table, batch_size, length, seed, end_share):
    batch = Segments(table, batch_size, length, seed, end_share).sample()
    action, time, tag = shown(batch)
    first, start = batch.first.numpy(), batch.start.numpy()
    assert first.shape == start.shape == batch.action.shape == batch.reward.shape == (batch_size, length)
    assert start[:, 0].all()
    # An episode begins exactly where its first frame is shown; only a row's first piece begins in mid-episode.
    assert (first == (time == 0)).all() and (first == (action == NO_ACTION)).all()
    assert (start >= first).all() and (start[:, 1:] == first[:, 1:]).all()
    # The action of a frame is the one it shows.
    assert (batch.action.numpy()[~first] == action[~first]).all() and (batch.action.numpy()[first] == 0).all()
    assert (batch.reward.numpy() == np.where(first, 0, action)).all()
    assert (batch.elapsed.numpy() == time).all()
    # Between starts, time goes on inside one episode, and nothing follows a terminal frame.
    inside = ~start[:, 1:]
    assert (time[:, 1:] - time[:, :-1] == 1)[inside].all()
    assert (tag[:, 1:] == tag[:, :-1])[inside].all()
    assert not (batch.terminated.numpy()[:, :-1] & inside).any()


def test_terminal_frames_are_flagged_and_truncated_ones_are_not(table):
    episodes, _ = played()
    ends = {(shown_tag(e.observations[-1]).item(), e.length): e.terminated for e in episodes}
    batch = Segments(table, 64, 30).sample()
    _, time, tag = shown(batch)
    expected = [[ends.get((g, t), False) for g, t in zip(*row)] for row in zip(tag, time)]
    assert batch.terminated.tolist() == expected
    assert batch.terminated.any() and {True, False} == set(ends.values())


def test_a_batch_holds_each_distinct_frame_once(table):
    batch = Segments(table, 8, 25).sample()
    flat = batch.frames.flatten(1)
    assert len(torch.unique(flat, dim=0)) == len(flat) == len(torch.unique(batch.index))
    assert batch.index.dtype == torch.int64 and batch.frames.dtype == torch.uint8


def test_every_slot_holds_every_frame_equally_often(table):
    known = {tuple(pixel): k for k, pixel in enumerate(table.frames[:, 0, 0].tolist())}
    counts = np.zeros((2, len(table.frames)))
    for batch in itertools.islice(Segments(table, 64, 9, end_share=0), 600):
        ids = np.array([known[tuple(pixel)] for pixel in batch.frames[:, 0, 0].tolist()])
        for side, slot in enumerate((0, 8)):
            np.add.at(counts[side], ids[batch.index[:, slot]], 1)
    expected = np.bincount(table.index, minlength=len(table.frames)) / len(table)
    spread = np.sqrt(expected / (600 * 64))
    for side in range(2):
        assert (np.abs(counts[side] / counts[side].sum() - expected) / spread).max() < 5


def test_a_share_of_rows_holds_a_rare_event(sparse_table):
    def share(end_share):
        batches = itertools.islice(Segments(sparse_table, 32, 4, end_share=end_share), 60)
        return np.mean([batch.terminated.any(1).float().mean() for batch in batches])

    base = share(0)
    assert share(1) == 1
    assert share(0.5) == pytest.approx(0.5 + 0.5 * base, abs=0.04)


def test_events_fall_where_they_count(sparse_table):
    batch = Segments(sparse_table, 64, 6, end_share=1).sample()
    assert not (batch.terminated & batch.start).any(1).all()  # a masked first slot would teach nothing
    assert (batch.terminated & ~batch.start).any(1).all()
    assert len(torch.unique(batch.terminated.float().argmax(1))) > 3  # and not always on the same slot


def test_dense_rewards_are_no_events(table):
    assert (table.reward != 0).mean() > 0.5
    assert (Segments(table, 1, 2).events == np.flatnonzero(table.terminated)).all()


def test_the_sampler_goes_on_exactly(tmp_path, table):
    segments = Segments(table, 4, 10, seed=3, loose=5, mix=0.5, spec=SHOWN, grain=1)
    segments.sample()
    torch.save(segments.state_dict(), tmp_path / "state.pt")
    expected = [segments.sample() for _ in range(3)]
    resumed = Segments(table, 4, 10, seed=99, loose=5, mix=0.5, spec=SHOWN, grain=1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one, other in zip(expected, resumed):
        assert one.codes is other.codes is None
        assert all(torch.equal(getattr(one, name), x) for name, x in vars(other).items() if x is not None)


def test_seeds_differ_and_repeat(table):
    one, same, other = (Segments(table, 4, 10, seed=s).sample() for s in (1, 1, 2))
    assert torch.equal(one.action, same.action) and not torch.equal(one.action, other.action)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_vectors_and_boxes(tmp_path, env_id):
    store = collect(env_id, tmp_path, 50, num_envs=2, progress=False)
    batch = Segments(FrameTable.from_store(store), 3, 8).sample()
    assert batch.frames.dtype == torch.float32 and batch.frames.shape[1:] == store.observation_space.shape
    if env_id == "Pendulum-v1":
        assert batch.action.shape == (3, 8, 1) and batch.action.dtype == torch.float32 and batch.action.abs().max() <= 1
    else:
        assert batch.action.shape == (3, 8) and batch.action.dtype == torch.int64
