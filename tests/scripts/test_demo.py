"""The demo in miniature: everything it promises to leave behind, and going on where it stopped."""

from __future__ import annotations

import json
import shutil

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from line_env import SHORT

import worldmodel
from worldmodel.checkpoint import save_model
from worldmodel.envs.contexts import choose_contexts, save_contexts
from worldmodel.envs.rollout import Episode
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.spaces import action_spec, observation_spec, space_to_json
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.scripts.cli import main
from worldmodel.scripts.demo import Demo, farewell
from worldmodel.scripts.progress import Progress

PRODUCTS = {"one": "one.txt", "two": "two.txt"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    argv = ["demo", "--out", str(out), "--env", "MiniGrid-Empty-5x5-v0", "--steps", "200", "--device", "cpu"]
    argv += ["--train-minutes", "0.02", "--dream-minutes", "0.01", "--episodes", "2", "--windows", "4"]
    assert main(argv) == 0
    return argv, out


def test_summary(demo):
    _, out = demo
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["env"], summary["seed"], summary["real_steps"]) == ("MiniGrid-Empty-5x5-v0", 0, 200)
    assert summary["minutes"] > 0
    for name in ("agent_success", "random_success", "dream_success"):
        assert 0 <= summary[name] <= 1
    for name in ("agent_length", "random_length"):
        assert 1 <= summary[name] <= 100
    assert EpisodeStore.open(out / "data").steps == 200


def test_pictures(demo):
    _, out = demo
    names = {path.name for path in (out / "report").iterdir()}
    assert {"learning_curves.png", "real_and_dream.mp4", "dream_0.png", "dreams.mp4"} <= names
    assert all(path.stat().st_size > 1000 for path in (out / "report").iterdir())


def test_it_is_a_complete_run(demo):
    _, out = demo
    model, agent = worldmodel.load(out), worldmodel.load_agent(out)
    env = gymnasium.make("worldmodel/Dream-v0", checkpoint=str(out))
    observation, _ = env.reset(seed=0)
    assert observation.shape == model.config.observation.shape
    action, _ = agent.act(observation, None)
    env.step(action)


def test_episodes_shorter_than_the_context(tmp_path, capsys):
    argv = ["demo", "--out", str(tmp_path / "demo"), "--env", SHORT, "--steps", "80", "--device", "cpu"]
    argv += ["--train-minutes", "0.01", "--dream-minutes", "0.01", "--episodes", "2", "--windows", "4"]
    assert main(argv) == 0
    fidelity = json.loads((tmp_path / "demo" / "evaluation.json").read_text())["fidelity"]
    assert fidelity["context"] == 2 and fidelity["horizons"]["1"]["windows"] == 4
    assert "PSNR of dreamed frames" in capsys.readouterr().out
    assert (tmp_path / "demo" / "report" / "dream_0.png").exists()


def test_a_demo_whose_fidelity_could_not_be_measured(demo, tmp_path, capsys):
    argv, out = demo
    argv = [word if word != str(out) else str(tmp_path / "demo") for word in argv]
    shutil.copytree(out, tmp_path / "demo", ignore=shutil.ignore_patterns("report", "summary.json"))
    evaluation, progress = (tmp_path / "demo" / name for name in ("evaluation.json", "demo.json"))
    measured, done = json.loads(evaluation.read_text()), json.loads(progress.read_text())
    del measured["fidelity"]
    done["done"].remove("report")
    evaluation.write_text(json.dumps(measured))
    progress.write_text(json.dumps(done))
    assert main(argv) == 0
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["dream_exact"] == {}
    drawn = {path.name for path in (tmp_path / "demo" / "report").iterdir()}
    assert drawn == {"learning_curves.png", "real_and_dream.mp4"}
    text = capsys.readouterr().out
    assert "agent, real" in text and "exact" not in text


@pytest.mark.parametrize(
    "space, pictures",
    [(Box(0, 255, (16, 16, 3), np.uint8), True), (Box(-1, 1, (3,)), False), (Box(0, 10, (7, 7, 3), np.uint8), False)],
    ids=["image", "vector", "grid"],
)
def test_what_the_farewell_says_can_be_typed(space, pictures, tmp_path):
    environment = {"observation_space": space_to_json(space), "action_space": space_to_json(Discrete(2))}
    model = WorldModel(preset("tiny", observation_spec(space), action_spec(Discrete(2))))
    save_model(tmp_path, model, environment)
    episode = Episode(
        np.stack([space.sample()] * 4), np.zeros(3, np.int64), np.zeros(3, np.float32), terminated=True, truncated=False
    )
    table = FrameTable.from_episodes([episode], Discrete(2))
    save_contexts(tmp_path / "contexts.npz", choose_contexts(table, count=2))
    (tmp_path / "report").mkdir()
    text = farewell(Demo(out=tmp_path))
    typed = text[text.index("import gymnasium") :].replace("\n  ", "\n")
    assert ("render" in typed) == pictures
    said: dict = {}
    exec(typed, said)
    assert said["env"].observation_space == space
    assert not pictures or said["picture"].shape[2] == 3


def test_again_does_nothing_twice(demo, capsys, fails):
    argv, out = demo
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.count("done before") == 5
    assert "agent, real" in text and "gymnasium.make" in text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    fails([*argv, "--seed", "1"], "seed 0")


def test_an_interrupted_stage_goes_on_and_counts_its_time(tmp_path, capsys):
    progress = Progress(tmp_path, PRODUCTS, {"seed": 0})
    with progress.stage("one", "first") as minutes:
        assert minutes == 0
        (tmp_path / "one.txt").write_text("")
    with pytest.raises(KeyboardInterrupt), progress.stage("two", "second"):
        raise KeyboardInterrupt

    progress = Progress(tmp_path, PRODUCTS, {"seed": 0})
    with progress.stage("one", "first") as minutes:
        assert minutes is None
    with progress.stage("two", "second") as minutes:
        assert minutes is not None and minutes > 0
        (tmp_path / "two.txt").write_text("")
    assert capsys.readouterr().out.count("[1/2] one: done before") == 1
    (tmp_path / "two.txt").unlink()
    with (
        pytest.raises(UserError, match=r"two\.txt is gone"),
        Progress(tmp_path, PRODUCTS, {"seed": 0}).stage("two", ""),
    ):
        pass


def test_a_killed_stage_has_taken_as_long_as_its_files_say(tmp_path):
    (tmp_path / "part").write_text("")
    content = json.dumps(
        {"seed": 0, "seconds": {}, "done": [], "running": ["one", (tmp_path / "part").stat().st_mtime - 60]}
    )
    (tmp_path / "demo.json").write_text(content)
    assert Progress(tmp_path, PRODUCTS, {"seed": 0}).minutes["one"] == pytest.approx(1.0, abs=0.1)


def test_an_unknown_environment_leaves_no_folder(tmp_path, fails):
    fails(["demo", "--env", "Typo-v0", "--out", tmp_path / "demo"], "Typo")
    assert not (tmp_path / "demo").exists()


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no demo"):
        Progress(tmp_path, PRODUCTS, {"seed": 0})
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Progress(tmp_path, PRODUCTS, {"seed": 0})
