"""The commands one after the other, and what they leave behind."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from line_env import COSTLY, ENDLESS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import worldmodel
from worldmodel.envs.contexts import load_contexts
from worldmodel.envs.rollout import Episode
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.scripts.cli import main
from worldmodel.scripts.dream import largest_return
from worldmodel.scripts.evaluate import dream_like
from worldmodel.scripts.report import lively_windows

SMALL = ("--batch-size", "2", "--length", "8", "--pictures-first", "0", "--device", "cpu")
BRIEF = ("--starts", "8", "--dreams", "8", "--horizon", "3", "--device", "cpu")


def test_a_run_is_complete(made):
    run = made / "run"
    files = {"config.json", "world_model.safetensors", "agent.safetensors", "trainer.pt", "contexts.npz", "tensorboard"}
    assert files <= {path.name for path in run.iterdir()}
    store, config = EpisodeStore.open(made / "data"), json.loads((run / "config.json").read_text())
    assert config["environment"] == store.environment
    assert store.steps == 300
    assert torch.load(run / "trainer.pt", weights_only=True)["update"] == 2
    assert len(load_contexts(run / "contexts.npz")) == 64
    agent = worldmodel.load_agent(run)
    action, _ = agent.act(store.observation_space.sample(), None)
    assert store.action_space.contains(action)


def test_evaluate_measures_three_ways(made, tmp_path, capsys):
    argv = ["evaluate", "--run", str(made / "run"), "--episodes", "3", "--play-only", "--device", "cpu"]
    assert main([*argv, "--json", str(tmp_path / "a.json")]) == 0
    text = capsys.readouterr().out
    for row in ("agent, real", "random, real", "agent, dream", "dream - real"):
        assert row in text
    report = json.loads((tmp_path / "a.json").read_text())
    collected = {entry["seed"] for entry in EpisodeStore.open(made / "data").index}
    for name in ("agent_real", "random_real", "agent_dream"):
        played = report[name]
        assert len(played["returns"]) == 3 and len(set(played["seeds"])) == 3
        assert not collected & set(played["seeds"])  # fresh
        assert max(played["lengths"]) <= 100  # the real time limit holds in the dream, too
    gap = report["agent_dream"]["success"] - report["agent_real"]["success"]
    assert report["return_gap"]["success"] == pytest.approx(gap)

    assert main([*argv, "--json", str(tmp_path / "b.json")]) == 0
    again = json.loads((tmp_path / "b.json").read_text())
    assert {k: v for k, v in again.items() if k != "command"} == {k: v for k, v in report.items() if k != "command"}
    assert main([*argv, "--seed", "1", "--json", str(tmp_path / "b.json")]) == 0
    other = json.loads((tmp_path / "b.json").read_text())
    assert main([*argv, "--realign", "1", "--json", str(tmp_path / "c.json")]) == 0
    aligned = json.loads((tmp_path / "c.json").read_text())
    assert (report["realign"], aligned["realign"]) == (0, 1)
    assert aligned["agent_real"] == report["agent_real"]
    environment = json.loads((made / "run" / "config.json").read_text())["environment"]
    assert dream_like(made / "run", environment, [1, 2], "cpu", num_envs=2, realign=3).dream.realign == 3
    assert not set(other["agent_real"]["seeds"]) & set(report["agent_real"]["seeds"])


def test_evaluate_before_there_is_an_agent(copy, capsys):
    (copy / "run" / "agent.safetensors").unlink()
    assert main(["evaluate", "--run", str(copy / "run"), "--episodes", "1", "--play-only"]) == 0
    text = capsys.readouterr().out
    assert "random, real" in text and "agent, real" not in text and "worldmodel dream" in text


def test_episodes_that_never_end_are_cut_off_where_dreams_are(tmp_path):
    data, run, report = tmp_path / "data", tmp_path / "run", tmp_path / "a.json"
    assert main(["collect", "--env", ENDLESS, "--steps", "60", "--out", str(data)]) == 0
    assert main(["train", "--data", str(data), "--out", str(run), "--updates", "1", *SMALL]) == 0
    assert main(["dream", "--run", str(run), "--updates", "1", *BRIEF]) == 0
    brief = ["--episodes", "2", "--windows", "2", "--device", "cpu"]
    assert main(["evaluate", "--run", str(run), *brief, "--json", str(report)]) == 0
    played = json.loads(report.read_text())
    for name in ("agent_real", "random_real"):
        assert played[name]["lengths"] == [200, 200] and played[name]["terminated"] == [False, False]
    assert max(played["agent_dream"]["lengths"]) <= 200
    assert played["fidelity"]["horizons"]["50"]["windows"] == 2


def test_a_fidelity_that_cannot_be_measured_costs_nothing_else(made, tmp_path, capsys, monkeypatch):
    def refuse(environment):
        raise UserError("there is no such set")

    monkeypatch.setattr("worldmodel.envs.test_set.load_test_set", refuse)
    argv = ["evaluate", "--run", str(made / "run"), "--episodes", "1", "--device", "cpu"]
    with pytest.warns(UserWarning, match="fidelity of dreamed frames is left out: there is no such set"):
        assert main([*argv, "--json", str(tmp_path / "a.json")]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert "agent_dream" in report and "fidelity" not in report
    assert "agent, dream" in capsys.readouterr().out


def test_the_agent_collects(copy, capsys):
    argv = ["collect", "--env", "MiniGrid-Empty-5x5-v0", "--out", str(copy / "played"), "--policy", str(copy / "run")]
    assert main([*argv, "--steps", "40", "--num-envs", "2"]) == 0
    first = [entry["seed"] for entry in EpisodeStore.open(copy / "played").index]
    assert main([*argv, "--steps", "80", "--num-envs", "2"]) == 0
    store = EpisodeStore.open(copy / "played")
    assert store.steps == 80
    assert [entry["seed"] for entry in store.index][: len(first)] == first


def test_vectors_go_the_whole_way(tmp_path, capsys):
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["collect", "--env", "CartPole-v1", "--steps", "120", "--out", data, "--seed", "3"]) == 0
    small = ["--batch-size", "2", "--length", "8", "--pictures-first", "0", "--report-every", "1", "--device", "cpu"]
    assert main(["train", "--data", data, "--out", run, "--updates", "1", *small]) == 0
    frames = FrameTable.from_store(EpisodeStore.open(data)).frames
    patches = worldmodel.load(run).frame_stage.patches
    np.testing.assert_allclose(patches.offset.flatten(), frames.mean(0), rtol=1e-4, atol=1e-5)  # fitted to the data
    assert main(["dream", "--run", run, "--updates", "1", *BRIEF]) == 0
    assert main(["evaluate", "--run", run, "--episodes", "2", "--play-only", "--device", "cpu"]) == 0
    assert "agent, dream" in capsys.readouterr().out


def test_returns_that_the_critic_cannot_say_are_warned_of(tmp_path, recwarn):
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["collect", "--env", COSTLY, "--steps", "90", "--num-envs", "1", "--out", str(data)]) == 0
    assert main(["train", "--data", str(data), "--out", str(run), "--updates", "1", *SMALL]) == 0
    shutil.copytree(run, tmp_path / "other")
    argv = ["dream", "--updates", "1", *BRIEF]
    assert main([*argv, "--run", str(run), "--discount", "0.8"]) == 0
    assert not [w for w in recwarn if "critic" in str(w.message)]  # 100 at most
    with pytest.warns(UserWarning, match=r"come to 521 in size, .* no value beyond 147: .* lower --discount than 0.99"):
        assert main([*argv, "--run", str(tmp_path / "other")]) == 0


def test_the_largest_return_is_looked_for_from_every_moment():
    rng = np.random.default_rng(0)
    rewards = [rng.normal(size=n).astype(np.float32) for n in (3, 1, 6)]
    shown = [np.zeros((len(part) + 1, 2), np.float32) for part in rewards]
    actions = [np.zeros(len(part), np.int64) for part in rewards]
    episodes = [Episode(*arrays, terminated=True, truncated=False) for arrays in zip(shown, actions, rewards)]
    sums = [abs(sum(0.7**k * r for k, r in enumerate(part[t:]))) for part in rewards for t in range(len(part))]
    table = FrameTable.from_episodes(episodes, Discrete(2))
    assert largest_return(table, 0.7) == pytest.approx(max(sums))


def test_own_data_can_be_trained_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    files = []
    for k in range(2):
        files.append(str(tmp_path / f"{k}.npz"))
        frames, actions = rng.integers(0, 256, (13, 32, 32, 3), np.uint8), rng.integers(0, 3, 12)
        np.savez(files[-1], frames=frames, actions=actions, rewards=np.zeros(12), terminated=k == 0)
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["import", "--npz", *files, "--out", data]) == 0
    assert len(EpisodeStore.open(data)) == 2
    argv = ["train", "--data", data, "--out", run, "--updates", "1", "--batch-size", "2", "--length", "8"]
    argv += ["--pictures-first", "0"]
    assert main([*argv, "--boundary", "learned", "--device", "cpu"]) == 0
    assert not worldmodel.load(run).fixed_starts


def test_training_films_what_it_dreams(copy):
    argv = ["train", "--data", str(copy / "data"), "--out", str(copy / "run"), "--resume", "--updates", "3"]
    assert main([*argv, "--report-every", "1", "--device", "cpu"]) == 0
    events = EventAccumulator(str(copy / "run" / "tensorboard" / "model"), size_guidance={"images": 0})
    events.Reload()
    (film,) = events.Images("open_loop/truth_dream_error")
    assert film.step == 3 and film.encoded_image_string.startswith(b"GIF")
    assert film.height == 4 * 56 and film.width > 3 * 56
    for tag in ("chunks/open_loop", "chunks/closed_loop", "chunks/start_entropy_open_loop", "open_loop/error"):
        assert np.isfinite(events.Scalars(tag)[-1].value)


def test_the_film_shows_moments_where_something_happens(made):
    table = FrameTable.from_store(EpisodeStore.open(made / "data"))
    windows = lively_windows(table, count=2, context=4, steps=6)
    assert len(windows) == 2
    assert len({int(table.episode_of(b)) for b in windows.begin}) == 2
    changed = np.concatenate([[False], table.index[1:] != table.index[:-1]])
    best = windows.begin[0]
    assert table.episode_of(best) == table.episode_of(best + 9)
    inside = [
        changed[b + 4 : b + 10].sum() for b in range(len(table) - 9) if table.episode_of(b) == table.episode_of(b + 9)
    ]
    assert changed[best + 4 : best + 10].sum() == max(inside)


def test_the_film_of_very_short_episodes():
    store_like = FrameTable(
        frames=np.zeros((2, 3), np.float32),
        index=np.array([0, 1, 0, 1]),
        action=np.zeros(4, np.int64),
        reward=np.zeros(4, np.float32),
        terminated=np.array([False, True, False, True]),
        first=np.array([True, False, True, False]),
        begin=np.array([0, 2, 4]),
    )
    windows = lively_windows(store_like)
    assert (windows.context, windows.horizons) == (1, (1,))
