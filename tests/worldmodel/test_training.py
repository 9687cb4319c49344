"""Training for real: a tiny world is learned in seconds, interrupted runs go on to the bit, bad numbers stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from moving_dot import CONFIG, FRAMES, GOAL, PLACES, Ring
from small_models import CONFIGS, EXTRA, random_batch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldmodel import losses
from worldmodel.batch import Batch
from worldmodel.checkpoint import load_model, save_config
from worldmodel.config import ModelConfig
from worldmodel.errors import UserError
from worldmodel.frames import FrameStage
from worldmodel.losses import LossConfig
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


@dataclass
class OpenLoop:
    """Of all dreamed steps up to each row's end: the share of right pictures, rewards and ends."""

    pictures: float
    rewards: float
    ends: float


def open_loop(model: WorldModel, steps: int = 8, rows: int = 64) -> OpenLoop:
    """Dream greedily after one real frame, beside the true world."""
    g = torch.Generator().manual_seed(5)
    place = torch.randint(GOAL, (rows,), generator=g)
    colour = torch.randint(2, (rows,), generator=g)
    state = model.initial_state(rows)
    state, _ = model.observe(state, None, FRAMES[colour * PLACES + place], torch.ones(rows, dtype=torch.bool))
    right: dict[str, list[bool]] = {"pictures": [], "rewards": [], "ends": []}
    alive = torch.ones(rows, dtype=torch.bool)
    for _ in range(steps):
        action = torch.randint(3, (rows,), generator=g)
        place = (place + action - 1) % PLACES
        state, out = model.imagine(state, action, greedy=True)
        error = (model.decode(out).float()[:, None] - FRAMES.float()[None]).abs().flatten(2)
        right["pictures"] += (error.sum(-1).argmin(1) == colour * PLACES + place)[alive].tolist()
        right["rewards"] += ((out.reward - 2.0 * (place == GOAL)).abs() < 0.2)[alive].tolist()
        right["ends"] += (out.terminated == (place == GOAL))[alive].tolist()
        alive &= place != GOAL
    return OpenLoop(**{name: sum(values) / len(values) for name, values in right.items()})


def test_a_tiny_world_is_learned_in_seconds_and_its_ends_come_at_the_right_step(tmp_path: Path) -> None:
    trainer(tmp_path).train(updates=500, progress=False)
    dreamed = open_loop(load_model(tmp_path))
    assert dreamed.pictures > 0.95
    assert dreamed.rewards > 0.97  # one step in seven pays and ends, so a step too early or late costs twice as much
    assert dreamed.ends > 0.97


def test_it_is_not_learned_when_actions_are_shuffled(tmp_path: Path) -> None:
    trainer(tmp_path, Ring(shuffle_actions=True)).train(updates=500, progress=False)
    dreamed = open_loop(load_model(tmp_path))
    assert dreamed.pictures < 0.6
    assert dreamed.ends < 0.9


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
from test_training import KILLED, Ring, trainer
from pathlib import Path
import torch
torch.set_num_threads(1)
class Told(Ring):
    def sample(self):
        with open({run!r} + "/batches", "a") as file:
            file.write(".")
        return super().sample()
trainer(Path({run!r}), Told(), config=KILLED).train(updates=10**6)
"""
KILLED = TrainConfig(batch_size=2, length=8, pictures_first=5, save_every=5)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    code = SCRIPT.format(here=str(Path(__file__).parent), run=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "world_model.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    begun = (tmp_path / "batches").stat().st_size
    for name in ("trainer.pt", "world_model.safetensors"):
        (tmp_path / f".{name}.x1y2z3").write_bytes(b"half")  # as if the axe had fallen while it wrote
    resumed = trainer(tmp_path, config=KILLED)
    resumed.resume()
    assert not list(tmp_path.glob(".*"))
    assert resumed.update % 5 == 0
    assert begun - 1 - 5 <= resumed.update <= begun
    load_model(tmp_path)  # whole, at whatever moment the axe fell
    before = resumed.update
    resumed.train(updates=before + 2, progress=False)
    assert resumed.update == before + 2
    # The same updates without the axe.
    unbroken = trainer(tmp_path / "unbroken", config=KILLED)
    unbroken.train(updates=before + 2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(everything(unbroken), everything(resumed), strict=True))


@pytest.mark.parametrize("where", ["batch", "gradient", "weights"])
def test_ctrl_c_in_the_middle_of_an_update_leaves_it_whole(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(batch_size=2, length=8, pictures_first=3, save_every=10**6)
    broken = trainer(tmp_path / "broken", config=config)
    owner, name = {
        "batch": (broken.batches, "sample"),
        "gradient": (torch.nn.utils, "clip_grad_norm_"),
        "weights": (broken.optimizer, "step"),
    }[where]
    original = getattr(owner, name)

    def pressed(*args: Any, **kwargs: Any) -> Any:
        if broken.update == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, pressed)
        with pytest.raises(KeyboardInterrupt):
            broken.train(updates=12, progress=False)
    resumed = trainer(tmp_path / "broken", config=config)
    resumed.resume()
    assert resumed.update == 7
    resumed.train(updates=12, progress=False)
    whole = trainer(tmp_path / "whole", config=config)
    whole.train(updates=12, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


def test_a_resumed_run_draws_each_point_of_its_curves_once(tmp_path: Path) -> None:
    config = TrainConfig(batch_size=2, length=8, pictures_first=0, log_every=1, save_every=2)
    killed = trainer(tmp_path, config=config)
    killed.train(updates=2, progress=False)
    saved = (tmp_path / "trainer.pt").read_bytes()
    killed.train(updates=3, progress=False)
    (tmp_path / "trainer.pt").write_bytes(saved)  # as if it had died behind update 3, without a word
    resumed = trainer(tmp_path, config=config)
    resumed.resume()
    resumed.train(updates=4, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "model"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss/reconstruction")] == [1, 2, 3, 4]


class Poisoned(Ring):
    """The ninth batch is not a number."""

    made = 0

    def sample(self) -> Batch:
        batch = super().sample()
        if self.made == 8:
            batch.reward[0, 1] = torch.nan
        self.made += 1
        return batch


def test_a_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = TrainConfig(batch_size=2, length=8, pictures_first=2, save_every=4)
    learner = trainer(tmp_path, Poisoned(), config=config)
    with pytest.raises(UserError, match=r"update 8: .*loss/total.* is not finite; the batch is kept in .*nan_batch_8"):
        learner.train(updates=50, progress=False)
    kept = torch.load(tmp_path / "nan_batch_8.pt", weights_only=True)
    assert kept["reward"].isnan().any()
    resumed = trainer(tmp_path, config=config)
    resumed.resume()
    assert resumed.update == 8
    assert all(v.isfinite().all() for v in load_model(tmp_path).state_dict().values())


@pytest.mark.parametrize("pictures_first", [0, 5])
def test_whatever_term_is_not_finite_it_is_named(
    tmp_path: Path, pictures_first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "foresight_loss", lambda model, patches: torch.tensor(torch.inf))
    model = WorldModel(CONFIGS["surprise"])
    learner = Trainer(model, Noise(model.config), tmp_path, TrainConfig(pictures_first=pictures_first))
    with pytest.raises(UserError, match=r"update 0: loss/foresight, loss/total is not finite"):
        learner.train(updates=2, progress=False)


def test_weights_that_explode_stop_the_run(tmp_path: Path) -> None:
    """Also when the batch is fine: the gradient is looked at before it is used."""
    learner = trainer(tmp_path, config=replace(QUICK, pictures_first=0))
    learner.train(updates=2, progress=False)
    good = (tmp_path / "world_model.safetensors").read_bytes()
    with torch.no_grad():
        learner.model.causal_stage.inner.stack.blocks[0].mixer.in_proj.weight.fill_(1e38)
    with pytest.raises(UserError, match="is not finite"):
        learner.train(updates=9, progress=False)
    assert (tmp_path / "world_model.safetensors").read_bytes() == good


class Noise:
    """Batches of noise for any config; the number of the next one is all there is to keep."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.made = config, 0

    def settle(self, stage: FrameStage) -> None:
        pass  # no frame comes twice

    def state_dict(self) -> dict[str, int]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.made = state["made"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.made += 1
            yield random_batch(self.config, seed=self.made, distinct=20)


def learned(run: Path, name: str) -> Trainer:
    torch.manual_seed(0)
    config = TrainConfig(warmup=10, pictures_first=4, average=0.9, learning_rate=3e-3)
    return Trainer(WorldModel(CONFIGS[name]), Noise(CONFIGS[name]), run, config)


@pytest.mark.parametrize("name", ["extra", "gaussian", "vector_learned"])
def test_runs_with_learned_boundaries_are_resumed_to_the_bit(tmp_path: Path, name: str) -> None:
    whole, broken, resumed = (learned(tmp_path / folder, name) for folder in ("whole", "broken", "broken"))
    whole.train(updates=8, progress=False)
    broken.train(updates=6, progress=False)
    resumed.resume()
    assert all(torch.equal(a, b) for a, b in zip(everything(broken), everything(resumed), strict=True))
    resumed.train(updates=8, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


def test_the_averaged_model_has_the_wanted_chunks_not_only_the_one_in_training(tmp_path: Path) -> None:
    """Averaged weights see other probabilities than those in training; with the latter's quantile the rate is lost."""
    learner = learned(tmp_path, "extra")
    learner.train(updates=60, progress=False)
    model = learner.averaged_model()
    frame_rates, causal_rates = [], []
    for seed in range(1000, 1008):  # batches that neither has seen
        with torch.no_grad():
            routing = model(random_batch(EXTRA, seed=seed, distinct=20), torch.arange(3)).routing
        frame_rates.append(routing["frame"].hard_rate.item() / model.frame_stage.cutting.router.rate)
        causal_rates.append(routing["stage0"].hard_rate.item() / model.causal_stage.router.rate)
    assert sum(frame_rates) / 8 == pytest.approx(1, abs=0.25)
    assert sum(causal_rates) / 8 == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("name", ["tried", "surprise"])
def test_so_it_has_where_a_router_that_learns_has_not_come_to_rest(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    config = TrainConfig(warmup=5, pictures_first=4, average=0.97, learning_rate=2e-2, settle=False)
    learner = Trainer(WorldModel(CONFIGS[name]), Noise(CONFIGS[name]), tmp_path, config)
    learner.train(updates=60, progress=False)
    cutting = (model := learner.averaged_model()).frame_stage.cutting
    assert not cutting.settled and not cutting.router.still
    rates = []
    for seed in range(1000, 1008):
        with torch.no_grad():
            routing = model(random_batch(CONFIGS[name], seed=seed, distinct=20), torch.arange(3)).routing
        rates.append(routing["frame"].hard_rate.item() / cutting.router.rate.item())
    assert sum(rates) / 8 == pytest.approx(1, abs=0.25)


def test_the_average_follows_the_weights_and_the_report_sees_it(tmp_path: Path) -> None:
    learner = trainer(tmp_path)
    told: list[tuple[int, bool]] = []
    learner.train(
        updates=4,
        report=lambda model, _w, update: told.append((update, model.training)),
        report_every=2,
        progress=False,
    )
    assert told == [(2, False), (4, False)]
    start = trainer(tmp_path / "other").model.frame_stage.embed.weight
    now, average = learner.model.frame_stage.embed.weight, learner.averaged_model().frame_stage.embed.weight
    assert 0 < (average - now).norm() < (start - now).norm()
    assert learner.model.training


def test_a_checkpoint_that_does_not_know_a_knob_is_resumed_all_the_same(tmp_path: Path) -> None:
    """One of before `past_first`, say; what it does say must not be changed once it has come to its end."""
    trainer(tmp_path).train(updates=3, progress=False)
    path = tmp_path / "trainer.pt"
    content = torch.load(path, weights_only=True)
    del content["config"]["past_first"]
    torch.save(content, path)
    resumed = trainer(tmp_path)
    resumed.resume()
    assert resumed.update == 3
    content["config"]["pictures_first"] = resumed.config.pictures_first + 1
    content["update"] = resumed.config.pictures_first + 1
    torch.save(content, path)
    with pytest.raises(UserError, match=r"was trained with pictures_first .* too late"):
        trainer(tmp_path).resume()


def test_what_learns_no_pictures_begins_to_be_averaged_behind_them(tmp_path: Path) -> None:
    """Or what is handed out for the first thousand updates of rows would be half of how the model was born."""
    torch.manual_seed(0)
    config = TrainConfig(warmup=1, pictures_first=30, average=0.99)
    learner = Trainer(WorldModel(CONFIGS["stride"]), Noise(CONFIGS["stride"]), tmp_path, config)
    born = [p.detach().clone() for p in learner.parts["rest"]]
    learner.train(updates=30, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(born, learner.averaged_parts["rest"]))
    learner.train(updates=34, progress=False)
    for start, now, average in zip(born, learner.parts["rest"], learner.averaged_parts["rest"]):
        if (moved := (now - start).norm()) > 1e-6:
            assert (average - now).norm() < 0.9 * moved


def test_norms_and_single_vectors_do_not_decay(tmp_path: Path) -> None:
    """A_log, dt_bias, D, norms, biases: decay would forget the memory lengths they are there to hold."""
    learner = trainer(tmp_path)
    decays = {id(p): g["weight_decay"] for g in learner.optimizer.param_groups for p in g["params"]}
    for name, parameter in learner.model.named_parameters():
        spared = name.endswith(("A_log", "dt_bias", ".D", "bias", "widen.rest")) or "norm" in name
        if spared:
            assert decays[id(parameter)] == 0, name
        elif name.endswith("in_proj.weight"):
            part = learner.config.frame_decay if name.startswith("frame_stage") else learner.config.weight_decay
            assert decays[id(parameter)] == part, name


def test_training_in_which_nothing_is_painted_is_refused() -> None:
    TrainConfig(losses=LossConfig(paint=0)), TrainConfig(loose=0)
    with pytest.raises(ValueError, match="nothing would be painted"):
        TrainConfig(losses=LossConfig(paint=0), loose=0)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign"])
def test_a_checkpoint_that_cannot_be_resumed_is_named_in_a_sentence(tmp_path: Path, damage: str) -> None:
    learner = trainer(tmp_path)
    learner.train(updates=2, progress=False)
    path = tmp_path / "trainer.pt"
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save({"update": 3}, path)
    with pytest.raises(UserError, match=r"trainer\.pt") as caught:
        trainer(tmp_path).resume()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_old_order_is_refused(tmp_path: Path) -> None:
    """Its optimizer's state would be given to the wrong parameters without a word."""
    learner = trainer(tmp_path)
    learner.train(updates=2, progress=False)
    content = torch.load(tmp_path / "trainer.pt", weights_only=True)
    torch.save(content | {"format_version": 1}, tmp_path / "trainer.pt")
    with pytest.raises(UserError, match="another version"):
        trainer(tmp_path).resume()


def test_the_rate_rises_twice_and_falls_to_zero_behind_the_pictures_and_slowly_behind_the_rest(tmp_path: Path) -> None:
    config = TrainConfig(pictures_first=6, warmup=2, level=4, learning_rate=1.0)
    learner = trainer(tmp_path, config=config)
    batch, rates = next(iter(learner.batches)), []
    for _ in range(15):
        learner.step(batch)
        rates.append(learner.optimizer.param_groups[0]["lr"])
    pictures = [0.5, 1, 1, 1, 1, 0.5]
    rest = [0.5, 1, 1, 1, (4 / 5) ** 0.5, (4 / 6) ** 0.5, (4 / 7) ** 0.5, (4 / 8) ** 0.5, (4 / 9) ** 0.5]
    assert rates == pytest.approx(pictures + rest)
