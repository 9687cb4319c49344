"""Training for real: a tiny world is learned in seconds, interrupted runs go on to the bit, bad numbers stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from moving_dot import CONFIG, FRAMES, GOAL, PLACES, Ring

from worldmodel.batch import Batch
from worldmodel.checkpoint import load_model, save_config
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.training import TrainConfig, Trainer

QUICK = TrainConfig(
    batch_size=4,
    length=12,
    learning_rate=5e-3,
    warmup=20,
    pictures_first=250,
    average=0.97,
    save_every=10**6,
    log_every=50,
)


def trainer(run: Path, batches: Ring | None = None, config: TrainConfig = QUICK, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    save_config(run, CONFIG, {"id": None})
    return Trainer(WorldModel(CONFIG), batches or Ring(), run, config, seed=seed)


def open_loop_accuracy(model: WorldModel, steps: int = 8, rows: int = 64) -> tuple[float, list[tuple[bool, bool]]]:
    """Share of dreamed frames that are right after one real frame, and (told, true) of every possible ending."""
    g = torch.Generator().manual_seed(5)
    place = torch.randint(GOAL, (rows,), generator=g)
    colour = torch.randint(2, (rows,), generator=g)
    state = model.initial_state(rows)
    state, _ = model.observe(state, None, FRAMES[colour * PLACES + place], torch.ones(rows, dtype=torch.bool))
    right, ends = [], []
    alive = torch.ones(rows, dtype=torch.bool)
    for _ in range(steps):
        action = torch.randint(3, (rows,), generator=g)
        place = (place + action - 1) % PLACES
        state, out = model.imagine(state, action, greedy=True)
        shown = (model.decode(out).float()[:, None] - FRAMES.float()[None]).abs().flatten(2).sum(-1).argmin(1)
        right += (shown == colour * PLACES + place)[alive].tolist()
        ends += list(zip(out.terminated[alive].tolist(), (place == GOAL)[alive].tolist()))
        paid = (out.reward - 2.0 * (place == GOAL)).abs() < 0.2
        right += paid[alive].tolist()
        alive &= place != GOAL
    return sum(right) / len(right), ends


def test_a_tiny_world_is_learned_in_seconds_and_its_ends_come_at_the_right_step(tmp_path: Path) -> None:
    learner = trainer(tmp_path)
    learner.train(updates=600, progress=False)
    accuracy, ends = open_loop_accuracy(load_model(tmp_path))
    assert accuracy > 0.95
    assert sum(told == true for told, true in ends) / len(ends) > 0.97


def test_it_is_not_learned_when_actions_are_shuffled(tmp_path: Path) -> None:
    learner = trainer(tmp_path, Ring(shuffle_actions=True))
    learner.train(updates=600, progress=False)
    accuracy, _ = open_loop_accuracy(load_model(tmp_path))
    assert accuracy < 0.8


def everything(learner: Trainer) -> list[torch.Tensor]:
    moments = [v for s in learner.optimizer.state.values() for v in s.values()]
    return [*learner.model.state_dict().values(), *learner.averaged_model().state_dict().values(), *moments]


@pytest.mark.parametrize("first", [4, 9])  # while it paints only, and later
def test_n_updates_a_restart_and_n_more_are_the_bits_of_2n(tmp_path: Path, first: int) -> None:
    config = TrainConfig(batch_size=2, length=8, warmup=5, pictures_first=6, save_every=10**6)
    whole = trainer(tmp_path / "whole", config=config)
    whole.train(updates=14, progress=False)
    trainer(tmp_path / "broken", config=config).train(updates=first, progress=False)
    resumed = trainer(tmp_path / "broken", Ring(seed=99), config=config, seed=3)
    resumed.resume()
    assert resumed.update == first
    resumed.train(updates=14, progress=False)
    for a, b in zip(everything(whole), everything(resumed), strict=True):
        assert torch.equal(a, b)
    weights = [(tmp_path / name / "world_model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    runs = [trainer(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for run in runs:
        run.train(updates=3, progress=False)
    assert not torch.equal(runs[0].parameters[0], runs[1].parameters[0])


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_training import trainer
from worldmodel.training import TrainConfig
from pathlib import Path
import torch
torch.set_num_threads(1)
trainer(Path({run!r}), config=TrainConfig(batch_size=2, length=8, pictures_first=5, save_every=5)).train(updates=10**6)
"""


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    code = SCRIPT.format(here=str(Path(__file__).parent), run=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "world_model.safetensors").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed = trainer(tmp_path, config=TrainConfig(batch_size=2, length=8, pictures_first=5, save_every=5))
    resumed.resume()
    assert resumed.update >= 5 and resumed.update % 5 == 0
    before = resumed.update
    resumed.train(updates=before + 2, progress=False)
    assert load_model(tmp_path) is not None and resumed.update == before + 2


def test_a_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Poisoned(Ring):
        drawn = 0

        def sample(self) -> Batch:
            batch = super().sample()
            if self.drawn == 8:
                batch.reward[0, 1] = torch.nan
            self.drawn += 1
            return batch

    config = TrainConfig(batch_size=2, length=8, pictures_first=2, save_every=4)
    learner = trainer(tmp_path, Poisoned(), config=config)
    with pytest.raises(UserError, match=r"update 8: .*loss/total.* is not finite; the batch is kept in .*nan_batch_8"):
        learner.train(updates=50, progress=False)
    kept = torch.load(tmp_path / "nan_batch_8.pt", weights_only=True)
    assert kept["reward"].isnan().any()
    resumed = trainer(tmp_path, config=config)
    resumed.resume()
    assert resumed.update == 8 and all(v.isfinite().all() for v in load_model(tmp_path).state_dict().values())


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_checkpoint_that_cannot_be_resumed_is_named_in_a_sentence(tmp_path: Path, damage: str) -> None:
    learner = trainer(tmp_path)
    learner.train(updates=2, progress=False)
    path = tmp_path / "trainer.pt"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save({"update": 3}, path)
    with pytest.raises(UserError, match=r"trainer\.pt") as caught:
        trainer(tmp_path).resume()
    assert "\n" not in str(caught.value)
