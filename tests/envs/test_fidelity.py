"""The measure itself is measured: the truth scores full marks, and every way of being wrong is noticed."""

import dataclasses
import json

import last_action_env
import numpy as np
import pytest
from minigrid.core.world_object import Wall

from worldmodel.envs.fidelity import frame_classes, measure_fidelity, score
from worldmodel.envs.fidelity_metrics import TileVocabulary, event_scores, frame_scores, mean_scores, reward_scores
from worldmodel.envs.fidelity_table import fidelity_table
from worldmodel.envs.make import make_env, make_from_spec, spec_of
from worldmodel.envs.open_loop import repeat_last_frame, truth
from worldmodel.envs.rollout import episode_seeds
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import FIRST_SEED, load_test_set
from worldmodel.envs.windows import choose_windows, fitting_context
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.specs import ObservationSpec

IMAGE = ObservationSpec(shape=(56, 56, 3))
HORIZONS = (1, 5, 15, 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("test_set") / "doorkey"


@pytest.fixture(scope="module")
def test_set(folder):
    spec = spec_of("MiniGrid-DoorKey-5x5-v0", max_steps=90)
    return load_test_set(spec, folder, episodes=16, progress=False)


@pytest.fixture(scope="module")
def windows(test_set):
    return choose_windows(test_set.table, test_set.succeeding, count=100)


@pytest.fixture(scope="module")
def vocabulary(test_set):
    return TileVocabulary.of(test_set.table.frames)


def report_of(predicted, test_set, windows, vocabulary):
    return score({"dream": predicted}, test_set.table, windows, shown=test_set.shown, spec=IMAGE, vocabulary=vocabulary)


# ---- frames ---------------------------------------------------------------------------------------------------------


def key_frame():
    """A frame that shows a key, and its tile."""
    env = make_env("MiniGrid-DoorKey-5x5-v0")
    for seed in range(50):
        frame, _ = env.reset(seed=seed)
        image = env.unwrapped.gen_obs()["image"]
        if (image[..., 0] == 5).any():
            i, j = np.argwhere(image[..., 0] == 5)[0]
            return frame, slice(8 * j, 8 * j + 8), slice(8 * i, 8 * i + 8), image
    raise AssertionError("no seed shows its key")


def test_one_missing_key_is_not_exact(vocabulary):
    frame, rows, columns, image = key_frame()
    without = frame.copy()
    i, j = np.argwhere(image[..., 0] == 1)[0]  # an empty floor tile takes its place
    without[rows, columns] = frame[8 * j : 8 * j + 8, 8 * i : 8 * i + 8]
    assert np.abs(without.astype(float) - frame).mean() / 255 < 0.01  # pixels alone would call it exact
    scores = frame_scores(
        np.stack([frame, without]), np.stack([frame] * 2), kind="image", scale=255, vocabulary=vocabulary
    )
    assert scores["exact"].tolist() == [True, False]
    assert scores["tile_rate"] == pytest.approx([1, 48 / 49])


def test_noise_is_forgiven_up_to_the_limit_and_no_further(vocabulary):
    frame = key_frame()[0]
    near, far = (np.clip(frame.astype(int) + step, 0, 255).astype(np.uint8) for step in (2, 4))
    scores = frame_scores(np.stack([near, far]), np.stack([frame] * 2), kind="image", scale=255, vocabulary=vocabulary)
    assert scores["tile_rate"].tolist() == [1, 1]  # the nearest tiles are right in both
    assert scores["exact"].tolist() == [True, False]  # but 4 / 255 is more than 0.01


def test_a_tile_that_the_data_lack_counts_as_wrong(vocabulary):
    frame = key_frame()[0]
    strange = frame.copy()
    strange[:8, :8] = np.arange(8, dtype=np.uint8)[:, None, None] * 30
    scores = frame_scores(strange[None], strange[None], kind="image", scale=255, vocabulary=vocabulary)
    assert not scores["exact"][0]
    assert scores["unknown_tiles"][0] == pytest.approx(1 / 49)


def test_nearest_tile_agrees_with_comparing_all_pairs(vocabulary):
    noisy = np.random.default_rng(0).integers(0, 256, size=(3, 16, 24, 3), dtype=np.uint8)
    nearest, known = vocabulary.nearest(noisy)
    assert nearest.shape == (3, 6) and not known.any()
    tiles = noisy.reshape(3, 2, 8, 3, 8, 3).swapaxes(2, 3).reshape(18, 1, 192).astype(int)
    distances = ((tiles - vocabulary.tiles.astype(int)) ** 2).sum(-1)
    assert np.array_equal(nearest.ravel(), distances.argmin(1))


def test_symbolic_grids_and_plain_images():
    true = np.zeros((2, 7, 7, 3), np.uint8)
    predicted = true.copy()
    predicted[1, 3, 3, 2] = 1  # a door stands open
    scores = frame_scores(predicted, true, kind="grid", scale=10, vocabulary=None)
    assert scores["exact"].tolist() == [True, False]
    assert scores["tile_rate"] == pytest.approx([1, 48 / 49])
    image = np.full((1, 64, 64, 3), 100, np.uint8)
    scores = frame_scores(image + 10, image, kind="image", scale=255, vocabulary=None)
    assert mean_scores(scores, np.array([True]))["psnr"] == pytest.approx(20 * np.log10(25.5))
    assert "exact" not in scores
    assert mean_scores(scores, np.array([False])) == {"frames": 0, "error": None, "psnr": None}


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="shape"):
        frame_scores(np.zeros((1, 8, 8, 3)), np.zeros((5, 8, 8, 3)), kind="image", scale=255, vocabulary=None)


# ---- events ---------------------------------------------------------------------------------------------------------


def test_events():
    predicted, true = np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 1, 0], bool)
    scores = event_scores(predicted, true)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.5, pytest.approx(1 / 3), pytest.approx(0.4))
    nothing = event_scores(np.zeros(3, bool), np.zeros(3, bool))
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (None, None, None)
    rewards = reward_scores(np.array([0.9, 0.04, 0.8, -1.0]), np.array([0.8, 0.0, 0.0, -0.7]))
    assert (rewards["true"], rewards["predicted"]) == (2, 3)
    assert rewards["recall"] == 1 and rewards["size_error"] == pytest.approx(0.2)


# ---- windows --------------------------------------------------------------------------------------------------------


def test_windows_stay_inside_their_episodes(test_set, windows):
    table = test_set.table
    assert (np.diff(windows.steps) <= 0).all()
    episode = table.episode_of(windows.begin)
    assert np.array_equal(table.episode_of(windows.begin + windows.context - 1 + windows.steps), episode)
    for column, horizon in enumerate(HORIZONS):
        sampled = windows.sampled[:, column]
        assert (windows.steps[sampled] >= horizon).all()
        share = test_set.succeeding[episode[sampled]].mean()
        assert sampled.sum() == 100 and share == 0.5
        assert table.terminated[windows.at(horizon)[windows.eventful[:, column]]].sum() >= 3
        assert len(np.unique(windows.begin[sampled])) == 100


def test_fewer_windows_than_wanted(test_set):
    windows = choose_windows(test_set.table, test_set.succeeding, count=10**6)
    lengths = np.diff(test_set.table.begin) - 1
    for column, horizon in enumerate(HORIZONS):
        assert windows.sampled[:, column].sum() == np.maximum(lengths - 7 - horizon + 1, 0).sum()


def test_only_frames_on_unseen_ground_depend_on_it(test_set, folder):
    """Rebuild the unseen part of the world after the context: the frames called predictable stay as they were."""
    table, episodes = test_set.table, list(EpisodeStore.open(folder / "store").episodes())
    windows = choose_windows(table, test_set.succeeding, count=100)
    inner = make_from_spec(test_set.environment).unwrapped
    column, horizon = 1, 5
    rows = np.flatnonzero(windows.sampled[:, column])
    classes = frame_classes(table, windows, test_set.shown, horizon, rows)
    same = []
    for row in rows:
        begin = windows.begin[row]
        number = int(table.episode_of(begin))
        episode, now = episodes[number], begin - table.begin[number] + windows.context - 1
        inner.reset(seed=episode.seed)
        for action in episode.actions[:now]:
            inner.step(int(action))
        seen = test_set.shown[begin : begin + windows.context].any(0)[6:-6, 6:-6]
        for x, y in np.argwhere(~seen[1:-1, 1:-1]) + 1:
            if (x, y) != tuple(inner.agent_pos):
                inner.grid.set(x, y, Wall() if inner.grid.get(x, y) is None else None)
        for action in episode.actions[now : now + horizon]:
            inner.step(int(action))
        frame = inner.get_frame(tile_size=8, agent_pov=True)
        same.append(np.array_equal(frame, table.frames[table.index[windows.at(horizon)[row]]]))
    same = np.array(same)
    assert classes["changed_way"].sum() >= 10 and same[classes["changed_way"]].all()
    assert (~classes["seen"]).sum() >= 10 and same[~classes["seen"]].mean() < 0.5


# ---- reports --------------------------------------------------------------------------------------------------------


def test_the_truth_scores_full_marks(test_set, windows, vocabulary):
    report = report_of(truth(test_set.table, windows), test_set, windows, vocabulary)
    for entry in report["horizons"].values():
        assert entry["windows"] == 100
        frames = entry["frames"]["dream"]
        assert frames["all"]["frames"] == 100 > frames["changed"]["frames"] > frames["changed_seen"]["frames"]
        assert frames["changed_seen"]["frames"] >= frames["changed_way"]["frames"] > 0
        for scores in frames.values():
            assert (scores["exact"], scores["tile_rate"], scores["error"]) == (1, 1, 0)
        for events in (entry["reward"]["dream"], entry["termination"]["dream"]):
            assert events["true"] >= 3 and events["f1"] == 1
        assert entry["reward"]["dream"]["size_error"] == 0


def test_one_frame_late(test_set, windows, vocabulary):
    table = test_set.table
    late = dataclasses.replace(windows, begin=windows.begin - 1)
    report = report_of(truth(table, late), test_set, windows, vocabulary)
    for horizon, entry in report["horizons"].items():
        scores = entry["frames"]["dream"]
        assert scores["changed"]["exact"] == 0  # a changed frame is by definition not the one before
        unchanged = 1 - scores["changed"]["frames"] / scores["all"]["frames"]
        assert scores["all"]["exact"] == pytest.approx(unchanged), horizon
        assert entry["termination"]["dream"]["recall"] == 0


def test_repeating_the_last_frame(test_set, windows, vocabulary):
    predicted = repeat_last_frame(test_set.table, windows)
    entry = report_of(predicted, test_set, windows, vocabulary)["horizons"]
    assert entry["1"]["frames"]["dream"]["changed"]["exact"] == 0
    assert 0 < entry["1"]["frames"]["dream"]["all"]["exact"] < 1
    assert entry["15"]["frames"]["dream"]["all"]["exact"] < entry["1"]["frames"]["dream"]["all"]["exact"]
    assert entry["1"]["reward"]["dream"]["recall"] == 0


def test_a_constant_frame_is_worth_nothing(test_set, windows, vocabulary):
    predicted = truth(test_set.table, windows)
    predicted.frames = np.full_like(predicted.frames, 127)
    for entry in report_of(predicted, test_set, windows, vocabulary)["horizons"].values():
        assert entry["frames"]["dream"]["all"]["exact"] == 0
        assert entry["frames"]["dream"]["all"]["tile_rate"] < 0.5


def test_a_model_is_measured_and_the_report_is_readable(test_set):
    space = make_from_spec(test_set.environment)
    model = WorldModel(
        preset("tiny", observation_spec(space.observation_space), action_spec(space.action_space))
    ).eval()
    report = measure_fidelity(model, test_set, windows=10, horizons=(1, 3))
    again = measure_fidelity(model, test_set, test_set.table.frames, windows=10, horizons=(1, 3))
    assert json.loads(json.dumps(report)) == report
    assert report["horizons"] == again["horizons"]
    assert report["horizons"]["3"]["windows"] == 10
    assert report["vocabulary"]["source"] == "test set" and again["vocabulary"]["source"] == "training data"
    assert report["chunks"]["dream"] == report["chunks"]["closed_loop"] == 4
    table = fidelity_table(json.loads(json.dumps(report)))
    assert "| 3 | changed, on seen ground |" in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("| 3 | ch")} == {8}
    with pytest.raises(UserError, match="goes on for 1000 steps behind 8 frames"):
        measure_fidelity(model, test_set, horizons=(1000,))


def test_where_episodes_are_short_so_is_the_context(test_set):
    short = load_short(test_set, 7)
    assert (fitting_context(short.table, 6), fitting_context(short.table, 8)) == (6, 2)
    space = make_from_spec(test_set.environment)
    spec = observation_spec(space.observation_space), action_spec(space.action_space)
    model = WorldModel(preset("tiny", *spec)).eval()
    report = measure_fidelity(model, short, windows=10)
    assert json.loads(json.dumps(report)) == report
    assert report["context"] == 2 and report["horizons"]["5"]["windows"] == 10
    assert report["horizons"]["15"]["windows"] == 0
    assert report["horizons"]["15"]["frames"]["dream"]["all"]["exact"] is None
    assert "2 real frames, then open loop" in fidelity_table(report)
    with pytest.raises(UserError, match="nothing to dream"):
        measure_fidelity(model, load_short(test_set, 1))


def load_short(test_set, frames):
    """The first frames of each episode of a test set, as if it had no more."""
    table = test_set.table
    at = (table.begin[:-1, None] + np.arange(frames)).ravel()
    parts = {name: getattr(table, name)[at] for name in ("index", "action", "reward", "terminated", "first")}
    begin = frames * np.arange(len(table.begin))
    shown = test_set.shown[at]
    return dataclasses.replace(test_set, table=dataclasses.replace(table, **parts, begin=begin), shown=shown)


# ---- the test set ---------------------------------------------------------------------------------------------------


def test_the_test_set_is_remade_identically_and_kept(test_set, folder, tmp_path):
    again = load_test_set(test_set.environment, tmp_path / "again", episodes=16, progress=False)
    for name in ("frames", "index", "action", "reward", "terminated", "begin"):
        assert np.array_equal(getattr(again.table, name), getattr(test_set.table, name)), name
    assert np.array_equal(again.shown, test_set.shown)
    written = (folder / "store" / "index.json").stat().st_mtime_ns
    load_test_set(test_set.environment, folder, episodes=16, progress=False)
    assert (folder / "store" / "index.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "file,content",
    [("store/episodes/000001.mkv", b"no video"), ("seen_ground.npz", b"PK no zip"), ("seen_ground.npz", b"")],
)
def test_a_damaged_or_foreign_test_set_is_remade(test_set, tmp_path, file, content):
    folder = tmp_path / "set"
    few = load_test_set(test_set.environment, folder, episodes=2, progress=False)
    (folder / file).write_bytes(content)
    repaired = load_test_set(test_set.environment, folder, episodes=2, progress=False)
    assert np.array_equal(repaired.table.index, few.table.index)
    other = load_test_set(spec_of("CartPole-v1"), folder, episodes=3, progress=False)
    assert other.table.num_episodes == 3 and other.shown is None and not other.succeeding.any()


def test_random_episodes_that_never_end_are_cut_off(tmp_path):
    endless = spec_of(last_action_env.ID, max_length=10**6)  # its frames cannot show times above 255
    assert endless["episode_limit"] is None
    table = load_test_set(endless, tmp_path / "set", episodes=2, progress=False).table
    assert np.diff(table.begin).tolist() == [201, 201] and not table.terminated.any()


def test_its_seeds_are_no_training_seeds(test_set, folder):
    seeds = [entry["seed"] for entry in EpisodeStore.open(folder / "store").index]
    assert len(set(seeds)) == 32 and min(seeds) >= FIRST_SEED
    training = episode_seeds(0)
    assert max(next(training) for _ in range(2000)) < FIRST_SEED
    assert test_set.succeeding.sum() == 16
    rewarded = [test_set.table.reward[a:b].sum() > 0 for a, b in zip(test_set.table.begin, test_set.table.begin[1:])]
    assert all(rewarded[:16])
