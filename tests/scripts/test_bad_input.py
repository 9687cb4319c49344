"""Each kind of bad input ends a command with exit code 2 and one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from worldmodel.envs.store import EpisodeStore
from worldmodel.scripts.cli import main

ONE = ("--updates", 1, "--batch-size", 2, "--length", 8, "--pictures-first", 0, "--device", "cpu")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_missing_data(tmp_path, fails):
    fails(["train", "--data", tmp_path / "nothing", "--out", tmp_path / "run", *ONE], str(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["dream", "evaluate"])
def test_missing_run(command, tmp_path, fails):
    fails([command, "--run", tmp_path / "nothing"], "no run folder", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "setting,words", [("ssd_scan=cuda", "there is no backend 'cuda'"), ("mamba_step=flash", "mamba_step has only")]
)
def test_a_backend_that_is_missing(setting, words, copy, fails, monkeypatch):
    monkeypatch.setenv("WORLDMODEL_BACKEND", setting)
    fails(["evaluate", "--run", copy / "run", "--episodes", 1, "--play-only", "--device", "cpu"], words)


@pytest.mark.parametrize("name", ["world_model.safetensors", "config.json", "agent.safetensors", "contexts.npz"])
def test_truncated_file_of_a_run(name, copy, fails):
    cut_off(copy / "run" / name)
    argv = ["evaluate", "--run", copy / "run", "--episodes", 1, "--play-only", "--device", "cpu"]
    fails(argv, str(copy / "run" / name))


@pytest.mark.parametrize(
    "name, command",
    [
        ("trainer.pt", "train"),
        ("training.json", "train"),
        ("agent_trainer.pt", "dream"),
        ("dreaming.json", "dream"),
    ],
)
def test_truncated_file_on_resume(name, command, copy, fails):
    path = copy / "run" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    where = ["--data", copy / "data", "--out", copy / "run"] if command == "train" else ["--run", copy / "run"]
    fails([command, *where, "--updates", 5, "--resume", "--device", "cpu"], str(path))


def test_truncated_index(copy, fails):
    cut_off(copy / "data" / "index.json")
    fails(["train", "--data", copy / "data", "--out", copy / "other", *ONE], "index.json")


def test_run_of_another_environment(copy, tmp_path, fails):
    other = tmp_path / "other"
    assert main(["collect", "--env", "MiniGrid-Empty-6x6-v0", "--steps", "60", "--out", str(other)]) == 0
    argv = ["train", "--data", other, "--out", copy / "run", "--resume", "--updates", 3]
    fails(argv, "MiniGrid-Empty-5x5-v0", "MiniGrid-Empty-6x6-v0")
    # The same spaces, but other episodes: dreaming on from them is allowed; collecting into them is not.
    fails(["collect", "--env", "MiniGrid-Empty-5x5-v0", "--steps", 100, "--out", other], "MiniGrid-Empty-6x6-v0")


def test_mismatched_spaces(copy, tmp_path, fails):
    vectors = tmp_path / "vectors"
    fails(["collect", "--env", "CartPole-v1", "--steps", 20, "--out", vectors, "--policy", copy / "run"], "CartPole-v1")
    assert main(["collect", "--env", "CartPole-v1", "--steps", "40", "--out", str(vectors)]) == 0
    again = ["dream", "--run", copy / "run", "--resume", "--updates", 3, "--data", vectors, "--device", "cpu"]
    fails(again, "observation_space")

    config = json.loads((copy / "run" / "config.json").read_text())
    config["environment"]["action_space"]["n"] = 6
    (copy / "run" / "config.json").write_text(json.dumps(config))
    fails(["evaluate", "--run", copy / "run", "--episodes", 1, "--play-only"], "mismatched spaces", "action_space")


def test_unknown_preset(made, tmp_path, fails):
    fails(["train", "--data", made / "data", "--out", tmp_path / "run", "--preset", "huge", *ONE], "'huge'", "tiny")
    assert not (tmp_path / "run").exists()


def test_options_that_no_model_can_have(made, tmp_path, fails):
    argv = ["train", "--data", made / "data", "--out", tmp_path / "run", *ONE]
    fails([*argv, "--chunks", 1000], "1000")
    fails([*argv, "--learning-rate", -1], "--learning-rate")
    for device in ("abacus", "meta", "hpu", "vulkan"):  # unknown, without numbers, without a module, without a driver
        assert len(fails([*argv, "--device", device], f"--device {device}", "try --device cpu")) < 300
    fails(["evaluate", "--run", made / "run", "--realign", -1], "--realign", "-1")
    fails([*argv, "--seed", -1], "--seed", "-1")
    fails(["collect", "--env", "CartPole-v1", "--steps", 9, "--out", tmp_path / "data", "--seed", 2**31], "--seed")
    fails(["collect", "--env", "CartPole-v1", "--steps", 0, "--out", tmp_path / "data"], "--steps")


def test_options_that_no_agent_can_have(copy, fails):
    for name in ("agent.safetensors", "agent_trainer.pt"):
        (copy / "run" / name).unlink()
    argv = ["dream", "--run", copy / "run", "--updates", 1, "--device", "cpu"]
    fails([*argv, "--discount", 7], "discount", "above 0 and at most 1", "7.0")
    fails([*argv, "--entropy", -1], "entropy", "0 or more", "-1.0")
    fails([*argv, "--horizon", 0], "--horizon")
    assert not (copy / "run" / "agent.safetensors").exists()


def test_runs_are_not_overwritten(copy, fails):
    before = (copy / "run" / "world_model.safetensors").read_bytes()
    fails(["train", "--data", copy / "data", "--out", copy / "run", *ONE], "--resume")
    fails(["dream", "--run", copy / "run", "--updates", 1], "--resume")
    assert (copy / "run" / "world_model.safetensors").read_bytes() == before


def test_nothing_to_resume(copy, tmp_path, fails):
    fails(["train", "--data", copy / "data", "--out", tmp_path / "run", "--resume", *ONE], "without --resume")
    for name in ("agent.safetensors", "agent_trainer.pt"):
        (copy / "run" / name).unlink()
    fails(["dream", "--run", copy / "run", "--resume", "--updates", 1], "without --resume")


def test_resuming_with_another_model(copy, fails):
    argv = ["train", "--data", copy / "data", "--out", copy / "run", "--resume", "--updates", 3]
    fails([*argv, "--boundary", "learned"], "--boundary stride")
    fails([*argv, "--preset", "small"], "--preset tiny")


def test_nan_in_a_store(tmp_path, fails):
    from gymnasium.spaces import Box, Discrete

    store = EpisodeStore.create(tmp_path / "data", observation_space=Box(-9, 9, (3,)), action_space=Discrete(2))
    store.add(np.zeros((5, 3), np.float32), np.zeros(4, np.int64), np.zeros(4, np.float32), True, False)
    path = tmp_path / "data" / "episodes" / "000000.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    content["rewards"][2] = np.nan
    np.savez(path, **content)
    with pytest.warns(UserWarning, match="000000"):
        fails(["train", "--data", tmp_path / "data", "--out", tmp_path / "run", *ONE], "none of the episodes")


def test_nan_in_imported_data(tmp_path, fails):
    frames = np.zeros((5, 3), np.float32)
    frames[1, 1] = np.nan
    path = tmp_path / "episode.npz"
    np.savez(path, frames=frames, actions=np.zeros(4, np.int64), rewards=np.zeros(4), terminated=True)
    fails(["import", "--npz", path, "--out", tmp_path / "data"], str(path))


def test_nan_in_training(copy, fails):
    weights = (copy / "run" / "world_model.safetensors").read_bytes()
    argv = ["train", "--data", copy / "data", "--out", copy / "run", "--resume", "--updates", 40]
    message = fails([*argv, "--learning-rate", 1e30, "--device", "cpu"], "not finite", "nan_batch")
    assert list((copy / "run").glob("nan_batch_*.pt")), message
    assert (copy / "run" / "world_model.safetensors").read_bytes() == weights


def test_json_into_a_folder_that_is_not_there(made, tmp_path, fails):
    fails(["evaluate", "--run", made / "run", "--json", tmp_path / "no" / "x.json"], "--json", str(tmp_path / "no"))


@pytest.fixture
def nothing_slow(monkeypatch):
    """Whoever begins to read, play or train is caught."""

    def begun(*args, **kwargs):
        raise AssertionError("something slow has begun")

    for name in ("checkpoint.load_model", "envs.store.EpisodeStore.open", "envs.make.spec_of", "envs.import_npz._read"):
        monkeypatch.setattr(f"worldmodel.{name}", begun)


def test_output_paths_that_cannot_be_written_are_refused_before_anything_slow(made, tmp_path, fails, nothing_slow):
    run, folder, file = made / "run", tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("")
    fails(["evaluate", "--run", run, "--episodes", 1, "--json", folder], f"--json {folder} is a folder", "report.json")
    fails(["evaluate", "--run", run, "--episodes", 1, "--json", file / "a.json"], f"no folder {file}")
    into_a_folder = {
        "show": ["--run", run],
        "collect": ["--env", "CartPole-v1", "--steps", 9],
        "train": ["--data", made / "data"],
        "import": ["--npz", tmp_path / "a.npz"],
        "demo": [],
    }
    for command, options in into_a_folder.items():
        for out in (file, file / "in" / "it"):
            fails([command, *options, "--out", out], f"--out {out} cannot be a folder", f"{file} is a file")
    fails(["import", "--npz", tmp_path / "a.npz", "--out", made / "data"], str(made / "data"), "holds a store already")


def test_settings_that_are_none(made, tmp_path, fails):
    argv = ["train", "--data", made / "data", "--out", tmp_path / "run", *ONE]
    fails([*argv, "--set", "main.lop.loops=8"], "main.lop", "main.loop")
    fails([*argv, "--set", "training.averag=0.9"], "training.averag", "training.average")
    fails([*argv, "--set", "trainig.average=0.9"], "no setting 'trainig'", "main, ", ", training")
    fails([*argv, "--set", "training=3"], "training is not a single setting", "training.average")
    fails([*argv, "--set", "training"], "NAME=VALUE", "'training'")
    fails([*argv, "--set", "training.losses.ratio=much"], "training.losses.ratio", "'much'")
    fails([*argv, "--set", "training.stride_first=5"], "nothing to hand over to", "'stride'")
    fails([*argv, "--set", "training.losses.paint=0", "--set", "training.loose=0"], "losses.paint=0 and loose=0")
    fails([*argv, "--set", "causal.0.extra=3"], "causal.0.extra=3", "causal.0.max_extra=2")
    fails([*argv, "--set", "main.loop.layers=T1", "--set", "main.loop.loops=32"], "main.loop.max_loops=16")
    fails([*argv, "--boundary", "learned", "--set", "frame.chunks_first=6"], "frame.chunks_first", "training.anneal")
    fails([*argv, "--chunks", "3", "--set", "frame.chunks=4"], "--chunks", "same setting")
    fails([*argv, "--end-share", "0.1", "--set", "training.end_share=0.2"], "--end-share", "same setting")
    fails(
        [*argv, "--set", "causal.0.extra_first=3", "--set", "causal.0.extra=1"], "causal.0.extra_first=3", "max_extra"
    )
    fails(
        [*argv, "--set", "main.loop.layers=T1", "--set", "main.loop.budget=17"],
        "main.loop.budget=17",
        "cannot be spent",
    )
    fails([*argv, *as_settings("time.layers=m1", "time.rounds=2", "time.changes_outer=1")], "changes_outer=1", "above")
    past = as_settings("frame.sees_past=true", "training.past_first=5")
    fails([*argv, *past, "--set", "training.settle=false"], "training.past_first", "training.settle=true")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting,waits_for",
    [
        ("main.loop.budget=4", "main.loop.layers"),
        ("main.loop.keys=last", "main.loop.layers"),
        ("time.changes=2", "time.layers"),
        ("time.boundary=learned", "time.layers"),
        ("frame.max_chunks=2", "frame.boundary"),
        ("frame.readers=9", "latent.slots=0"),
        ("causal.0.max_extra=5", "causal.0.extra"),
        ("training.anneal=100", "frame.chunks_first"),
    ],
)
def test_settings_that_would_do_nothing(setting, waits_for, made, tmp_path, fails):
    argv = ["train", "--data", made / "data", "--out", tmp_path / "run", *ONE]
    fails([*argv, "--set", setting], f"{setting.partition('=')[0]} does nothing", waits_for)
    assert not (tmp_path / "run").exists()


def as_settings(*settings):
    return [part for setting in settings for part in ("--set", setting)]


def test_resuming_with_another_setting(copy, fails):
    argv = ["train", "--data", copy / "data", "--out", copy / "run", "--resume", "--updates", 3]
    fails([*argv, "--set", "frame.chunks=5"], "begun without --set frame.chunks=5")
    fails([*argv, "--set", "training.average=0.5"], "begun without --set training.average=0.5")
    fails([*argv, "--pictures-first", "0"], "is at update 2", "too late for 0")
