"""The ablation: its table of variants, a whole small run, killed and gone on with, its bits by hand, and its tables."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import ablation
import ablation_run
import ablation_tables
import code_length
import gymnasium
import numpy as np
import pytest
import tables
import torch
import variants
from ablation_run import Plan

from worldmodel.config import CausalConfig, FrameConfig, LatentConfig, MainConfig, MambaConfig, ModelConfig
from worldmodel.envs.rollout import Episode
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.model import WorldModel
from worldmodel.overrides import override
from worldmodel.presets import preset
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import TrainConfig, Trainer

SMALL = (
    *("frame.width=16", "frame.heads=2", "causal.0.width=24", "main.width=32", "main.heads=2"),
    *("mamba.headdim=8", "mamba.d_state=4", "latent.groups=13", "latent.classes=2"),
    *("training.batch_size=2", "training.length=8", "training.pictures_first=2", "training.save_every=2"),
)
PLAN = Plan(
    environment="empty", variant="plain", settings=SMALL, seed=0, updates=5, cpu_minutes=1e-6, windows=8
)  # the CPU time is up after the first update


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs and results in a temporary folder, one thread, short rows."""
    monkeypatch.setattr(ablation_run, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(ablation_run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(ablation_run, "PATIENCE", 1e9)
    monkeypatch.setattr(code_length, "LENGTH", 16)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "empty"
    return variants.Environment("MiniGrid-Empty-5x5-v0", 200, {"loops": 2}, 4, folder)


# ---- variants ---------------------------------------------------------------------------------------------------


def test_every_variant_is_a_model_of_its_own():
    plain = preset("tiny", ObservationSpec(shape=(56, 56, 3)), ActionSpec(sizes=(7,)))
    configs = {}
    for name, settings in variants.VARIANTS.items():
        of_training = [s for s in settings if s.startswith("training.")]
        of_model = [s for s in settings if s not in of_training]
        configs[name] = (
            override(plain, *of_model),
            override(TrainConfig(), *of_training, prefix="training."),
        )
    assert configs["plain"] == (plain, TrainConfig())
    assert len(set(map(repr, configs.values()))) == len(configs)


def test_every_variant_stands_in_a_group_and_every_row_is_a_variant():
    rows = [name for group in variants.GROUPS.values() for name in group.values()]
    assert set(rows) == set(variants.VARIANTS)
    assert variants.variants_of(variants.ENVIRONMENTS["doorkey"]).keys() == variants.VARIANTS.keys()
    assert variants.variants_of(variants.ENVIRONMENTS["doorkey"])["loops_4"] == 3  # of two groups the larger number


def test_what_is_asked_for():
    every = ablation.plans(ablation.Options())
    assert len({plan.result for plan in every}) == len(every)
    assert [plan.name for plan in ablation.plans(ablation.Options(only=("lo*_1", "plain"), seeds=(4,)))] == [
        "plain_seed4",
        "loops_1_seed4",
    ]
    assert {plan.seed for plan in ablation.plans(ablation.Options(env="pong"))} == {0}
    for wrong in (ablation.Options(only=("nothing",)), ablation.Options(env="nowhere")):
        with pytest.raises(SystemExit, match="known are"):
            ablation.plans(wrong)


# ---- a run ------------------------------------------------------------------------------------------------------


def test_a_run_is_measured_at_both_points_and_passed_over_afterwards(empty, monkeypatch, capsys):
    ablation_run.run(PLAN, empty)
    result = json.loads(PLAN.result.read_text())
    at = result["evaluations"]
    assert at["cpu"]["update"] == 1 and at["updates"]["update"] == 5
    assert 0 < at["cpu"]["cpu_seconds"] < at["updates"]["cpu_seconds"]
    assert at["cpu"]["frames_per_cpu_second"] is None and at["updates"]["frames_per_cpu_second"] > 0
    assert at["updates"]["main_tokens_a_frame"] == 1.0 and at["updates"]["chunks"]["dream"] == 4.0
    assert set(at["updates"]["horizons"]["1"]) >= {"dream", "closed_loop", "shuffled_actions", "frames"}
    assert result["parameters"] > 0 and result["flops_a_frame"] > 0

    monkeypatch.setattr(ablation, "plans", lambda options: [PLAN])
    monkeypatch.setattr(ablation, "side_by_side", lambda *_: pytest.fail("ran again"))
    assert ablation.main(ablation.Options()) == 0
    assert "plain_seed0: on record" in capsys.readouterr().out
    other = replace(PLAN, windows=9)
    assert "another windows" in ablation.standing(other)
    assert "another edition" in ablation.standing(replace(PLAN, edition=PLAN.edition + 1))
    # The tables read what the run wrote.
    monkeypatch.setattr(tables, "RESULTS", ablation_run.RESULTS.parent)
    (ablation_run.RESULTS.parent / "ablation").symlink_to(ablation_run.RESULTS)
    (ablation_run.RESULTS / "doorkey").symlink_to(PLAN.result.parent)
    assert "| no core | 1 |" in tables.TABLES["ablation_loops"]()


def test_a_killed_run_goes_on_to_the_same_figures(empty, monkeypatch):
    plan, step = replace(PLAN, seed=1), Trainer.step
    unbroken = ablation_run.run(plan, empty)

    def killed(self, batch):
        if self.update == 3:  # one update after the last checkpoint
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(ablation_run, "RUNS", ablation_run.RUNS / "again")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            ablation_run.run(plan, empty)
    begun = json.loads((plan.folder / ablation_run.PROGRESS_FILE).read_text())
    assert set(begun["evaluations"]) == {"cpu"}

    def counted(self, batch):
        updates.append(self.update)
        return step(self, batch)

    updates: list[int] = []
    monkeypatch.setattr(Trainer, "step", counted)
    resumed = ablation_run.run(plan, empty)
    assert updates == [2, 3, 4]
    assert resumed["evaluations"]["cpu"] == begun["evaluations"]["cpu"]
    for name in ("bits", "horizons", "chunks"):
        assert resumed["evaluations"]["updates"][name] == unbroken["evaluations"]["updates"][name]
    assert resumed["evaluations"]["updates"]["cpu_seconds"] > begun["evaluations"]["cpu"]["cpu_seconds"]


def test_a_folder_of_another_plan_is_begun_anew(empty):
    ablation_run.Progress.of(PLAN)
    (PLAN.folder / "something").touch()
    ablation_run.Progress.of(PLAN)
    assert (PLAN.folder / "something").exists()
    ablation_run.Progress.of(replace(PLAN, updates=6))
    assert not (PLAN.folder / "something").exists()


def test_who_never_comes_to_the_updates_is_not_waited_for(empty, monkeypatch):
    monkeypatch.setattr(ablation_run, "PATIENCE", 1.0)
    learned = (*SMALL, "frame.boundary=learned", "causal.0.extra=1")
    evaluations = ablation_run.run(replace(PLAN, settings=learned, updates=10**6), empty)["evaluations"]
    assert set(evaluations) == {"cpu"}
    assert evaluations["cpu"]["bits"]["start"] > 0 and evaluations["cpu"]["main_tokens_a_frame"] >= 1


def test_loops_are_those_that_ran(empty):
    _, test_set = ablation_run.open_data(empty)
    spec = preset("tiny", ObservationSpec(shape=test_set.table.frames.shape[1:]), ActionSpec(sizes=(7,)))
    small = override(spec, *(s for s in SMALL if not s.startswith("training.")))

    def loops(*settings):
        torch.manual_seed(0)
        model = WorldModel(override(small, *settings)).eval()
        return ablation_run.loops_a_token(model, test_set.table)

    core = ("main.loop.layers=T1", "main.loop.loops=4")
    assert loops() is None
    assert loops(*core) == 4.0
    assert loops(*core, "main.loop.budget=3") == 3.0
    assert 1.0 <= loops(*core, "main.loop.exit=1000") < 4.0


def test_a_plan_survives_the_command_line():
    assert Plan.from_json(ablation.command(PLAN)[-1]) == PLAN


def test_runs_go_side_by_side_and_failures_are_told(tmp_path):
    flag = tmp_path / "flag"
    waits = f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.05)"
    releases = f"open({str(flag)!r}, 'w'); print('released'); raise SystemExit(3)"
    folders = [tmp_path / "runs" / name for name in ("one", "two")]
    codes = ablation.side_by_side([[sys.executable, "-c", waits], [sys.executable, "-c", releases]], folders, jobs=2)
    assert codes == [0, 3] and (tmp_path / "runs" / "two.log").read_text() == "released\n"


def test_data_are_collected_once(empty):
    store, test_set = ablation_run.open_data(empty)
    assert store.steps == 200 and test_set.table.num_episodes == 8
    before = (empty.folder / "index.json").stat().st_mtime_ns
    ablation_run.open_data(empty)
    assert (empty.folder / "index.json").stat().st_mtime_ns == before
    assert len(EpisodeStore.open(empty.folder)) == len(store)


# ---- bits -------------------------------------------------------------------------------------------------------

CONFIG = ModelConfig(
    observation=ObservationSpec(shape=(12, 16, 3)),  # the patches of the last row are cut
    action=ActionSpec(sizes=(3,)),
    frame=FrameConfig(patch=8, width=16, heads=2, chunks=2.0),
    latent=LatentConfig(groups=3, classes=4),
    causal=(CausalConfig(width=24, heads=2),),
    main=MainConfig(width=32, heads=2),
    mamba=MambaConfig(d_state=4, headdim=8),
)


def noise_table(lengths=(20, 15)):
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            rng.integers(256, size=(n, 12, 16, 3), dtype=np.uint8),
            rng.integers(3, size=n - 1),
            np.zeros(n - 1, np.float32),
            terminated=False,
            truncated=True,
            seed=0,
        )
        for n in lengths
    ]
    return FrameTable.from_episodes(episodes, gymnasium.spaces.Discrete(3))


def noise_model(config=CONFIG):
    torch.manual_seed(0)
    model = WorldModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def test_bits_are_those_of_a_hand_computation():
    model, table = noise_model(), noise_table()
    code = pixels = 0.0
    counted = [*range(16), *range(17, 32)]  # rows of 16 begin at 0 and at 16; 16 is in mid-episode
    for row in (0, 16):
        batch = table.gather(np.arange(row, row + 16)[None])
        with torch.no_grad():
            seen = model(batch, torch.tensor([row // 16]) << 32)
            logits = model.prior(seen.y[:, :, :-1], seen.chunks.start.view(1, 16, 2))
            painted = model.frame_stage.decode(seen.latent[0], seen.y[0, :, :-1], seen.chunks)
        p = logits.view(16, 2, 3, 4).softmax(-1) * 0.99 + 0.01 / 4
        chosen = seen.latent.view(16, 2, 3, 4).argmax(-1, keepdim=True)
        each_code = -p.gather(-1, chosen).log2().sum((1, 2, 3))
        image = painted.view(16, 2, 2, 8, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(16, 16, 16, 3)[:, :12].clamp(0, 1)
        true = torch.from_numpy(table.frames[table.index[row : row + 16]]).float() / 255
        density = torch.distributions.Normal(image, 0.05).log_prob(true)
        each_pixels = -(density - math.log(255)).sum((1, 2, 3)) / math.log(2)
        for t in range(16):
            if row + t in counted:
                code, pixels = code + float(each_code[t]), pixels + float(each_pixels[t])
    bits = code_length.bits_a_frame(model, table)
    assert bits["frames"] == len(counted) == 31
    assert bits["code"] == pytest.approx(code / 31, rel=1e-5)
    assert bits["pixels"] == pytest.approx(pixels / 31, rel=1e-5)
    assert bits["start"] == 0.0 and bits["total"] == pytest.approx(bits["code"] + bits["pixels"])
    assert bits["above_floor"] == pytest.approx(bits["total"] - 12 * 16 * 3 * 4.998, rel=1e-3)


def test_all_values_of_a_pixel_together_have_the_probability_one():
    values = torch.arange(-2000, 2000, dtype=torch.float64) / 255
    for painted in (0.0, 0.3, 0.5011):
        nats = (values - painted) ** 2 / (2 * code_length.SIGMA**2) + code_length.VALUE_NATS
        assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_starts_cost_bits_where_they_are_chosen():
    learned = replace(CONFIG, frame=replace(CONFIG.frame, boundary="learned", patch=4, chunks=4.0))
    bits = code_length.bits_a_frame(noise_model(learned), noise_table())
    assert bits["start"] > 0 and bits["total"] == pytest.approx(bits["code"] + bits["start"] + bits["pixels"])


def test_bits_need_images_and_a_row_of_them():
    with pytest.raises(ValueError, match="not enough"):
        code_length.bits_a_frame(noise_model(), noise_table((5, 5)))
    vectors = replace(CONFIG, observation=ObservationSpec(shape=(5,), dtype="float32", kind="vector", scale=1.0))
    vectors = replace(vectors, frame=replace(CONFIG.frame, patch=1))
    with pytest.raises(ValueError, match="images"):
        code_length.bits_a_frame(noise_model(vectors), noise_table())


def test_flops_grow_with_the_layers_and_leave_the_backend_alone():
    table = noise_table()
    batch, config = table.gather(np.arange(32).reshape(2, 16)), TrainConfig()
    before = os.environ.get("WORLDMODEL_BACKEND")
    plain = ablation_run.flops_a_frame(noise_model(), batch, config)
    deeper = replace(CONFIG, main=replace(CONFIG.main, layers="m1T1m1T1"))
    assert ablation_run.flops_a_frame(noise_model(deeper), batch, config) > plain > 0
    assert os.environ.get("WORLDMODEL_BACKEND") == before


# ---- tables -----------------------------------------------------------------------------------------------------


def result(variant, seed, exact, *, slow=False, updates=3000):
    horizons = {h: {"frames": 60, "dream": exact, "closed_loop": 0.9} for h in ("1", "5", "15", "50")}
    evaluation = {
        "update": 3000,
        "cpu_seconds": 200.0,
        "frames_per_cpu_second": 2000.0,
        "bits": {"code": 10.0, "start": 0.0, "pixels": 1100.0, "total": 1110.0, "floor": 1000.0, "above_floor": 110.0},
        "score": "exact",
        "horizons": horizons,
        "chunks": {"dream": 4.0, "closed_loop": 4.5},
        "main_tokens_a_frame": 1.0,
        "loops_a_token": None,
    }
    return {
        "plan": {"variant": variant, "seed": seed, "updates": updates, "cpu_minutes": 5.0},
        "environment": "Some-Env-v0",
        "parameters": 1_400_000,
        "flops_a_frame": 12_300_000.0,
        "evaluations": {"cpu": evaluation | {"update": 4000}} | ({} if slow else {"updates": evaluation}),
    }


def write(folder: Path, *results):
    for r in results:
        (folder / f"{r['plan']['variant']}_seed{r['plan']['seed']}.json").write_text(json.dumps(r))


def test_tables_give_mean_and_extremes_and_leave_out_what_is_missing(tmp_path):
    assert ablation_tables.report("boundaries", tmp_path) == "not measured yet"
    write(tmp_path, *(result("plain", seed, exact) for seed, exact in enumerate((0.7, 0.8, 0.9))))
    write(tmp_path, result("learned", 0, 0.5), result("none", 0, 0.1, slow=True))
    text = ablation_tables.report("boundaries", tmp_path)
    assert "| fixed stride | 3 | 110 | 10.0 | 0.0 | 100 | 80% (70% to 90%) |" in text
    assert "| learned router | 1 | 110 | 10.0 | 0.0 | 100 | 50% |" in text
    assert "| every patch a chunk | 0 | - |" in text and "at random" not in text
    assert "| fixed stride | 4.50 | 4.00 | 1.00 | - | 1.40M | 12.3 | 2,000 |" in text
    for block in (block for block in text.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_section_shows_its_mechanisms_below_the_plain_model(tmp_path):
    write(tmp_path, *(result("plain", seed, exact) for seed, exact in enumerate((0.7, 0.9))))
    assert ablation_tables.mechanism("residual", tmp_path) == "not measured yet", "the plain model alone says nothing"
    write(
        tmp_path, result("residual_mamba", 0, 0.5), result("residual_none", 0, 0.1, slow=True), result("time", 0, 0.2)
    )
    text = ablation_tables.mechanism("residual", tmp_path)
    lines = text.splitlines()
    assert (
        lines[2]
        == "| plain | 2 | 110 | 80% (70% to 90%) | 80% (70% to 90%) | 110 | "
        + "80% (70% to 90%) | " * 2
        + "12.3 | 2,000 |"
    )
    assert lines[3] == "| no residual | 1 | - | - | - | 110 | 10% | 10% | 12.3 | 2,000 |"
    assert (
        lines[4] == "| a Mamba-2 layer as residual | 1 | 110 | 50% | 50% | 110 | 50% | 50% | 12.3 | 2,000 |"
        and len(lines) == 5
    )
    assert len({line.count("|") for line in lines}) == 1
    assert ablation_tables.is_about("loops", "certainty") and not ablation_tables.is_about("depth", "certainty")
    assert not any(ablation_tables.is_about(section, "plain") for section in ablation_tables.SECTIONS)


def test_a_glance_has_a_line_for_each_variant_of_the_group(tmp_path):
    write(tmp_path, result("plain", 0, 0.7))
    assert ablation_tables.glance("action", tmp_path) == "not measured yet"
    write(tmp_path, result("action_add", 0, 0.5), result("time", 0, 0.2))
    lines = ablation_tables.glance("action", tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| in the padding", "| added"]


def test_runs_of_another_length_are_not_mixed_in(tmp_path):
    write(tmp_path, result("plain", 0, 0.7), result("plain", 1, 0.7), result("learned", 0, 0.1, updates=100))
    rows = ablation_tables.results_of("boundaries", tmp_path)
    assert list(rows) == ["fixed stride"] and len(rows["fixed stride"]) == 2
    newer = result("learned", 0, 0.1)
    newer["plan"]["edition"] = 2
    write(tmp_path, newer)
    assert list(ablation_tables.results_of("boundaries", tmp_path)) == ["fixed stride"]


def test_the_documents_can_ask_for_every_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("boundaries", "action", "loops", "mechanisms", "boundaries_pong"):
        assert tables.TABLES[f"ablation_{name}"]() == "not measured yet"
    for name in ("boundaries", "action", "loops", "boundaries_pong"):
        assert tables.TABLES[f"glance_{name}"]() == "not measured yet"
    for name in ablation_tables.SECTIONS:
        assert tables.TABLES[f"mechanism_{name}"]() == "not measured yet"
    for name in ("growing", "realign"):
        assert tables.TABLES[name]() == "not measured yet"


def test_bits_of_a_model_that_follows_patches_through_time():
    """Which patches are new has to be said, and each is painted from the chunk it was in when it was new."""
    spec, rng = ObservationSpec(shape=(16, 16, 3)), np.random.default_rng(0)
    torch.manual_seed(0)
    config = override(
        preset("tiny", spec, ActionSpec(sizes=(3,))), "time.layers=m1", "time.changes=1", "frame.chunks=2"
    )
    table = FrameTable(
        frames=rng.integers(0, 255, (5, 16, 16, 3)).astype(np.uint8),
        index=rng.integers(0, 5, 128),
        action=np.zeros(128, int),
        reward=np.zeros(128, np.float32),
        terminated=np.zeros(128, bool),
        first=np.arange(128) == 0,
        begin=np.array([0, 128]),
    )
    bits = code_length.bits_a_frame(WorldModel(config).eval(), table)
    # A new model says 1 in 4 of each of four patches.
    p = 1 / 4
    assert min(-np.log2(p), -np.log2(1 - p)) * 4 * 0.9 < bits["start"] < -np.log2(p) * 4
    assert bits["pixels"] > bits["floor"]
