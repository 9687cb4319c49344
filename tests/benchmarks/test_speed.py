"""The speed benchmark: its clocks, its works on a small model, its tables, and what it does without sheeprl."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path

import growth
import gymnasium
import numpy as np
import pytest
import rates
import sheeprl_venv
import speed_report
import tables
import timing
import torch

from worldmodel.config import CausalConfig, FrameConfig, MainConfig, ModelConfig
from worldmodel.envs.rollout import Episode
from worldmodel.envs.segments import FrameTable
from worldmodel.model import WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import TrainConfig

RESULT = {
    "environment": "Some-Env-v0",
    "parameters": 1_420_087,
    "commit": "0123456789abcdef",
    "dirty": True,
    "machine": {"cores": 2},
    "matmul_gflops_per_cpu_second": 73.0,
    "chunks_a_frame": {"dream": 4.0},
    "exact_at_15": {"changed": 0.5},
    "rates": {
        "trained": {"per_cpu_second": 2000.0, "distinct_share": 0.2},
        "latent dream steps": {"per_cpu_second": 8500.0},
    },
    "sheeprl": {
        "matmul_gflops_per_cpu_second": [70.0, 76.0],
        "sizes": {
            "1M": {
                "trained_frames_per_cpu_second": 122.0,
                "imagined_steps_per_cpu_second": {
                    "imagine": 16_900.0,
                    "latent_and_heads": 20_000.0,
                    "latent": 25_000.0,
                },
            }
        },
    },
    "growth": {
        "length": {"12": 1e-3, "24": 1.1e-3},
        "dreamed": {"8": 7e-4},
        "batch": {"16": 4e-4, "4096": 2e-4},
        "chunks": {"2": {"trained": 1e-3, "dreamed with pixels": 6e-4, "latent dream steps": 1e-4}},
    },
    "load_before_threads": 0.5,
    "threads": {"trained": {"1": 1000.0, "2": 1500.0}},
    "peak_memory_bytes": {"import alone": 250 * 2**20},
}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    black = np.zeros((40, 16, 16, 3), np.uint8)
    moves = rng.integers(3, size=39)
    episode = Episode(black, moves, np.zeros(39, np.float32), terminated=False, truncated=True, seed=0)
    return FrameTable.from_episodes([episode] * 3, gymnasium.spaces.Discrete(3))


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        observation=ObservationSpec(shape=(16, 16, 3)),
        action=ActionSpec(sizes=(3,)),
        frame=FrameConfig(patch=4, width=16),
        causal=(CausalConfig(width=32),),
        main=MainConfig(width=48),
    )
    return WorldModel(config).eval()


@pytest.fixture(autouse=True)
def one_thread():
    """As in the benchmark; two that wait for a busy core take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(markdown):
    return [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]


def test_the_report_shows_dreamer_beside_our_rates_and_takes_its_rate_as_a_goal():
    text = speed_report.everything(RESULT)
    assert "| trained | 2,000 | 600 | 4.0 | 20% | 50.0% |" in text
    assert "3,000, then 10,000, then DreamerV3's 16,900" in text
    assert "| DreamerV3 1M (sheeprl): latent dream steps | 20,000 |" in text
    assert "commit 01234567 with changes" in text and "73 GFLOP/s (70 and 76 beside DreamerV3)" in text
    assert "| training on a frame, all of them distinct | 1,000 | 1,100 |" in text
    assert "| trained | 1,000 | 1,500 | 1.50x |" in text and "| import alone | 250 |" in text


def test_every_table_has_as_many_cells_in_each_row():
    blocks = speed_report.everything(RESULT).split("\n\n")
    for block in (block for block in blocks if block.startswith("|")):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_without_sheeprl_its_earlier_figures_stand_among_the_peers():
    result = copy.deepcopy(RESULT)
    del result["sheeprl"], result["growth"], result["threads"], result["peak_memory_bytes"]
    text = speed_report.everything(result)
    assert "| DreamerV3 1M (sheeprl) | 122 | - | 16,900 |" in text and "then DreamerV3's |" in text
    assert "| DreamerV3 1M (sheeprl) |" not in speed_report.report(RESULT)  # measured: not twice


def test_results_go_through_json_into_documents(tmp_path, monkeypatch):
    (tmp_path / "speed_Some-Env-v0.json").write_text(json.dumps(RESULT))
    (tmp_path / "speed_Some-Env-v0_quick.json").write_text("not for documents")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("speed", "growth", "threads", "memory"):
        assert rows_of(tables.TABLES[name]())


def test_results_in_the_repository_can_be_shown():
    assert "trained" in tables.TABLES["speed"]()


def test_cpu_time_leaves_out_waiting_and_wall_time_does_not():
    assert timing.cpu_seconds(lambda: time.sleep(0.02), 3) < 0.01
    assert timing.wall_seconds(lambda: time.sleep(0.02), 1, (1,))[1] >= 0.02


def test_threads_take_turns_and_are_put_back():
    before, seen = torch.get_num_threads(), []
    timing.wall_seconds(lambda: seen.append(torch.get_num_threads()), 2, (1, 2))
    assert seen == [1, 2, 1, 2, 1, 2] and torch.get_num_threads() == before


def test_where_it_was_measured_names_no_path():
    assert timing.matmul_rate(1) > 0
    text = json.dumps([timing.machine(), timing.revision()])
    assert str(Path.home()) not in text and str(timing.ROOT) not in text


def test_distinct_frames(model, table):
    config = TrainConfig(batch_size=2, length=12)
    assert rates.distinct_share(model, table, config) < 0.2
    assert rates.distinct_share(model, rates.all_distinct(table), config) > 0.9
    assert (np.abs(rates.all_distinct(table).frames.astype(int)) <= 1).all()


def test_every_work_of_growth_takes_time(model, table, monkeypatch):
    monkeypatch.setattr(growth, "FRAMES", 24)
    monkeypatch.setattr(growth, "LENGTHS", (12,))
    monkeypatch.setattr(growth, "DREAMED", (1,))
    monkeypatch.setattr(growth, "CHUNKS", (2,))
    monkeypatch.setattr(growth, "BATCHES", (4,))
    grown = growth.measure(model, table, 1)
    assert min(*grown["length"].values(), *grown["dreamed"].values(), *grown["batch"].values()) > 0
    assert min(grown["chunks"]["2"].values()) > 0


def test_a_failed_installation_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*command):
        (tmp_path / "sheeprl").mkdir()
        raise sheeprl_venv.NoPeer("no network")

    monkeypatch.setattr(sheeprl_venv, "_run", fail)
    with pytest.raises(sheeprl_venv.NoPeer, match="no network"):
        sheeprl_venv.ensure(tmp_path / "sheeprl")
    assert not (tmp_path / "sheeprl").exists()


def test_a_command_that_fails_says_its_last_error(monkeypatch):
    with pytest.raises(sheeprl_venv.NoPeer, match=r"^that is why \(exit code 3\)$"):
        sheeprl_venv._run(sys.executable, "-c", "import sys; print('that is why', file=sys.stderr); sys.exit(3)")
    with pytest.raises(sheeprl_venv.NoPeer):
        sheeprl_venv._run("no_such_command")


def test_what_is_installed_is_not_installed_again(tmp_path, monkeypatch):
    (tmp_path / ".installed").touch()
    monkeypatch.setattr(sheeprl_venv, "_run", lambda *command: pytest.fail("ran"))
    assert sheeprl_venv.ensure(tmp_path).is_relative_to(tmp_path)
