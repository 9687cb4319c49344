"""Stopped and gone on with: by --updates, by Ctrl-C and by kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from worldmodel.agents.training import AgentTrainer
from worldmodel.checkpoint import load_config
from worldmodel.envs.segments import FrameTable
from worldmodel.scripts.cli import main

SMALL = ("--batch-size", "2", "--length", "8", "--pictures-first", "1", "--device", "cpu")
BRIEF = ("--starts", "8", "--dreams", "8", "--horizon", "3", "--device", "cpu")


def same(one: Path, other: Path, name: str) -> bool:
    a, b = (safetensors.torch.load_file(folder / name) for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_resumed_model_is_the_unbroken_one(copy):
    data, run, unbroken = str(copy / "data"), str(copy / "run"), str(copy / "unbroken")
    # The options of the first call hold without being given again.
    assert main(["train", "--data", data, "--out", run, "--resume", "--updates", "4", "--device", "cpu"]) == 0
    assert torch.load(copy / "run" / "trainer.pt", weights_only=True)["update"] == 4
    assert main(["train", "--data", data, "--out", unbroken, "--updates", "4", *SMALL]) == 0
    assert same(copy / "run", copy / "unbroken", "world_model.safetensors")


def test_settings_hold_without_being_given_again(made, tmp_path):
    settings = ("training.average=0.5", "training.losses.representation=0.1", "main.width=160", "frame.chunks=3")
    argv = ["train", "--data", str(made / "data"), "--out", str(tmp_path / "run")]
    chosen = [word for setting in settings for word in ("--set", setting)]
    assert main([*argv, *chosen, *SMALL, "--updates", "1"]) == 0
    model = load_config(tmp_path / "run")
    assert (model.main.width, model.frame.chunks) == (160, 3.0)
    assert main([*argv, "--resume", "--updates", "2", "--device", "cpu"]) == 0
    assert main([*argv, "--resume", "--updates", "3", "--device", "cpu", *chosen]) == 0  # nothing new, so no harm
    training = torch.load(tmp_path / "run" / "trainer.pt", weights_only=True)["config"]
    assert (training["average"], training["losses"]["representation"], training["batch_size"]) == (0.5, 0.1, 2)


def test_a_resumed_agent_counts_on(copy):
    run = str(copy / "run")
    assert main(["dream", "--run", run, "--resume", "--updates", "4", "--device", "cpu"]) == 0
    agent = safetensors.torch.load_file(copy / "run" / "agent.safetensors")
    assert agent["updates"] == 4
    (copy / "run" / "agent.safetensors").unlink()
    (copy / "run" / "agent_trainer.pt").unlink()
    assert main(["dream", "--run", run, "--updates", "4", *BRIEF]) == 0
    unbroken = safetensors.torch.load_file(copy / "run" / "agent.safetensors")
    assert all(torch.equal(agent[key], unbroken[key]) for key in agent)


def test_the_seed_and_the_moments_hold_without_being_given_again(copy, fails):
    agents = []
    for name, calls in (("broken", ("1", "3")), ("whole", ("3",))):
        run, data = copy / name, copy / "beside"
        shutil.copytree(copy / "run", run)
        shutil.copytree(copy / "data", data, dirs_exist_ok=True)
        for file in ("agent.safetensors", "agent_trainer.pt", "dreaming.json"):
            (run / file).unlink()
        argv = ["dream", "--run", str(run), "--device", "cpu"]
        begun = ["--seed", "3", "--starts", "12", "--dreams", "4", "--horizon", "3", "--data", str(data)]
        assert main([*argv, *begun, "--updates", calls[0]]) == 0
        for updates in calls[1:]:
            assert main([*argv, "--resume", "--updates", updates]) == 0
        agents.append(safetensors.torch.load_file(run / "agent.safetensors"))
    assert all(torch.equal(value, agents[1][name]) for name, value in agents[0].items())
    fails([*argv, "--resume", "--seed", "4"], "begun with --seed 3, not 4")


def test_the_seed_of_a_run_that_was_killed_before_it_saved(made, tmp_path):
    argv = ["train", "--data", str(made / "data"), *SMALL, "--updates", "1"]
    runs = [tmp_path / "killed", tmp_path / "whole"]
    for run in runs:
        assert main([*argv, "--out", str(run), "--seed", "7"]) == 0
    for name in ("trainer.pt", "world_model.safetensors"):
        (runs[0] / name).unlink()
    assert main([*argv, "--out", str(runs[0]), "--resume"]) == 0
    assert same(*runs, "world_model.safetensors")


def test_enough_updates_are_enough(copy):
    argv = ["--updates", "2", "--resume", "--device", "cpu"]
    assert main(["train", "--data", str(copy / "data"), "--out", str(copy / "run"), *argv]) == 0
    assert main(["dream", "--run", str(copy / "run"), *argv]) == 0
    assert torch.load(copy / "run" / "trainer.pt", weights_only=True)["update"] == 2


def test_dreams_without_the_data(copy, capsys):
    (copy / "data").rename(copy / "elsewhere")
    argv = ["dream", "--run", str(copy / "run"), "--resume", "--updates", "3", "--device", "cpu"]
    with pytest.warns(UserWarning, match="64 contexts"):
        assert main(argv) == 0
    assert main([*argv, "--data", str(copy / "elsewhere")]) == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_training(made, tmp_path, how, capsys):
    run = tmp_path / "run"
    argv = ["train", "--data", str(made / "data"), "--out", str(run), *SMALL]
    words = [sys.executable, "-m", "worldmodel", *argv, "--updates", "100000", "--save-every", "2"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (run / "world_model.safetensors").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(how)
        errors = process.communicate(timeout=120)[1]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in errors
        last = errors.strip().splitlines()[-1]
        assert last.startswith("worldmodel: stopped.") and "--resume" in last
    else:
        assert process.returncode == -signal.SIGKILL
    done = torch.load(run / "trainer.pt", weights_only=True)["update"]
    assert done >= 2
    assert main([*argv, "--resume", "--updates", str(done + 1)]) == 0
    assert torch.load(run / "trainer.pt", weights_only=True)["update"] == done + 1


def test_killed_before_the_first_checkpoint(copy):
    for name in ("trainer.pt", "world_model.safetensors"):
        (copy / "run" / name).unlink()
    argv = ["train", "--data", str(copy / "data"), "--out", str(copy / "run"), "--updates", "1", "--device", "cpu"]
    assert main([*argv, "--resume"]) == 0
    assert torch.load(copy / "run" / "trainer.pt", weights_only=True)["update"] == 1


def test_ctrl_c_in_dreams_keeps_the_agent(copy, monkeypatch, capsys):
    update = AgentTrainer.update

    def interrupted(self, starts):
        if int(self.agent.updates) == 4:
            os.kill(os.getpid(), signal.SIGINT)  # which waits for the end of the update
        return update(self, starts)

    monkeypatch.setattr(AgentTrainer, "update", interrupted)
    argv = ["dream", "--run", str(copy / "run"), "--resume", "--starts", "8", "--device", "cpu"]
    assert main([*argv, "--updates", "9"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert safetensors.torch.load_file(copy / "run" / "agent.safetensors")["updates"] == 5


@pytest.mark.parametrize("command", ["train", "dream"])
def test_ctrl_c_before_anything_is_learned_says_so(command, copy, monkeypatch, capsys):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FrameTable, "from_store", pressed)
    for name in ("agent.safetensors", "agent_trainer.pt"):
        (copy / "run" / name).unlink()
    where = (
        ["--data", str(copy / "data"), "--out", str(copy / "new")]
        if command == "train"
        else ["--run", str(copy / "run")]
    )
    assert main([command, *where, "--device", "cpu"]) == 130
    assert "begins again" in capsys.readouterr().err
