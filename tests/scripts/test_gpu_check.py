"""The GPU check without a GPU: its logic at toy sizes, and that nothing that goes wrong stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.kernels.ema import ema_scan
from worldmodel.scripts.gpu.compare import Case, achieved, check
from worldmodel.scripts.gpu.parts import Part, all_parts, guarded
from worldmodel.scripts.gpu.report import one_line, summary
from worldmodel.scripts.gpu.sizes import ACTIONS, BlockWorld, all_sizes
from worldmodel.scripts.gpu_check import run, write

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# Imported by every Python that starts with its folder on the path, the check's own second process included.
WITHOUT = """
import sys

ABSENT = ("gymnasium", "av", "tyro", "minigrid", "tqdm", "tensorboard", "safetensors", "matplotlib")

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def command(*words: object, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", **env}
    if path is not None:
        given["PYTHONPATH"] = str(path)
    line = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=given, capture_output=True, text=True)


def test_without_a_gpu_it_says_so(tmp_path):
    done = command("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("There is no GPU")
    assert done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_all_of_it_at_toy_sizes_on_a_bare_machine(tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(WITHOUT)
    done = command("--quick", "--device", "cpu", "--out", tmp_path / "out", path=tmp_path / "path")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "out").iterdir()
    assert file.name.endswith("_quick.json") and torch.__version__.split("+")[0] in file.name
    content = json.loads(file.read_text())
    assert content["format_version"] == 1 and content["finished"]
    assert content["rates"]["copy_gb_per_s"] > 0
    assert {p["status"] for p in content["parts"]} == {"pass", "missing"}
    assert len(content["parts"]) == len(all_parts(quick=True)) - 2  # the machine and its rates stand by themselves
    passed = {p.get("kernel") or p["what"] for p in content["parts"] if p["status"] == "pass"}
    kernels = {"ssd_scan", "ema_scan", "mamba_mix", "mamba_step", "attention", "boundary_logit", "compact", "pack"}
    kernels |= {"spread", "take", "row_hash", "uniform"}
    assert passed == kernels | {"as_on_the_cpu", "steps_as_parallel", "training", "dreaming"}
    for p in content["parts"]:
        assert p["name"] in done.stdout
    assert "0 of " in done.stdout.splitlines()[-4]


def test_triton_runs_in_its_interpreter(tmp_path):
    done = command("--quick", "--device", "cpu", "--out", tmp_path, "--only", "ema_scan", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    parts = json.loads(file.read_text())["parts"]
    assert [(p["backend"], p["status"]) for p in parts] == [("triton", "pass"), ("torch", "pass")] * 2


def smoothing(call: Any) -> Case:
    return Case(
        kernel="ema_scan",
        size="",
        backends=("torch",),
        inputs=lambda g: {"z": torch.randn(2, 5, 3, generator=g), "p": torch.rand(2, 5, generator=g)},
        call=call,
        learned=("z", "p"),
    )


def right(given, backend):
    return ema_scan(given["z"], given["p"], backend="torch")


def off(given, backend):
    y, last = right(given, backend)
    return (y * (1.0 if y.dtype == torch.float64 else 1.001)), last


def not_a_number(given, backend):
    y, last = right(given, backend)
    return (y if y.dtype == torch.float64 else y.index_fill(1, torch.tensor([2]), torch.nan)), last


def no_gradient(given, backend):
    y, last = right(given, backend)
    return (y if y.dtype == torch.float64 else y.detach() + 0 * given["z"]), last


@pytest.mark.parametrize(
    ("call", "status"), [(right, "pass"), (off, "fail"), (not_a_number, "fail"), (no_gradient, "fail")]
)
def test_a_wrong_kernel_fails(call, status):
    assert check(smoothing(call), "fp32", "torch", CPU, 1)["status"] == status


def test_an_entry_that_nobody_writes_fails():
    def unwritten(given: Any, backend: str) -> list[torch.Tensor]:
        if given["z"].dtype == torch.float64:
            return [given["z"] * 2]
        out = torch.empty_like(given["z"])
        out[:, 1:] = given["z"][:, 1:] * 2
        return [out]

    case = replace(smoothing(unwritten), learned=())
    assert check(case, "fp32", "torch", CPU, 1)["outputs"][0]["pass"] is False


def test_what_is_counted():
    case = replace(smoothing(right), flops=1000.0)
    result = check(case, "fp32", "torch", CPU, 1)
    inputs, outputs = 4 * (2 * 5 * 3 + 2 * 5), 4 * (2 * 5 * 3 + 2 * 3)
    assert result["forward_bytes"] == inputs + outputs
    assert result["both_bytes"] == (inputs + outputs) + (inputs + outputs) + inputs
    found = achieved(result | {"both_ms": 2.0}, {"copy_gb_per_s": 1.0, "fp32_tflop_per_s": 3e-6}, "fp32")
    assert found["gb_per_s"] == pytest.approx(result["both_bytes"] / 2e-3 / 1e9)
    assert found["tflop_per_s"] == pytest.approx(3 * 1000 / 2e-3 / 1e12)
    assert found["share_of_card"] == pytest.approx(0.5)


def test_an_exception_is_written_down():
    def broken(device: torch.device) -> dict[str, Any]:
        raise RuntimeError("at 34:12:\n    tl.load(x)\n    tl.dot(a, b)\n    ^") from ValueError("it does not fit")

    result = guarded(Part("kernels", "x", {}, broken), CPU)
    assert result["status"] == "error"
    assert result["reason"] == "RuntimeError: at 34:12: ... tl.dot(a, b) (it does not fit)"
    assert "in broken" in result["traceback"]
    parts = [{"group": "models", "name": "x", **result}]
    assert "it does not fit" in summary({"parts": parts, "rates": {}})
    assert one_line("x", result, {}).startswith("error   x: RuntimeError")


def test_a_backend_that_is_not_there_is_missing_not_broken():
    about = {"backend": "flash"}
    assert guarded(Part("kernels", "x", about, lambda device: {}), CPU)["status"] == "missing"


def dying(connection: Connection, device: str, quick: bool, names: list[str]) -> None:
    """A worker that a kernel kills, that hangs at another, and that loses the card at a third."""
    connection.send("ready")
    for name in names:
        if name == "kills":
            os._exit(7)
        if name == "hangs":
            time.sleep(60)
        connection.send({"status": "pass"})
        if name == "loses":
            return


def parts_called(*names: str) -> list[Part]:
    return [Part("models", name, {}, lambda device: {}) for name in names]


def test_others_go_on_when_one_kills_hangs_or_loses_the_card(monkeypatch):
    monkeypatch.setattr("worldmodel.scripts.gpu_check.PATIENCE", 2.0)
    parts = parts_called("first", "kills", "hangs", "loses", "last")
    results = {part.name: result for part, result in run(parts, "cpu", True, 300.0, dying)}
    assert list(results) == [part.name for part in parts]
    assert results.pop("kills") == {"status": "error", "reason": "the process died (7)"}
    assert results.pop("hangs") == {"status": "error", "reason": "no answer in 2 s"}
    assert all(result == {"status": "pass"} for result in results.values())


def stillborn(connection: Connection, device: str, quick: bool, names: list[str]) -> None:
    """A worker that does not even start."""


def test_a_process_that_does_not_start_is_no_endless_loop():
    results = [result for _, result in run(parts_called("a", "b"), "cpu", True, 300.0, stillborn)]
    assert results == [{"status": "error", "reason": "the process died (0)"}] * 2


def test_no_part_begins_too_late():
    kernels = [Part("kernels", "a", {}, lambda device: {}), Part("kernels", "b", {}, lambda device: {})]
    results = list(run([*kernels, *parts_called("last")], "cpu", True, 0.0, dying))
    assert [(part.name, result["status"]) for part, result in results] == [
        ("a", "skipped"),
        ("b", "skipped"),
        ("last", "skipped"),
    ]


def test_the_file_is_whole_and_plain_json(tmp_path):
    write(tmp_path / "new" / "x.json", {"a": float("nan"), "b": 1})
    assert json.loads((tmp_path / "new" / "x.json").read_text(), parse_constant=pytest.fail) == {"a": "NaN", "b": 1}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_the_small_world_is_what_its_actions_make_of_it():
    world = BlockWorld(all_sizes(quick=True)[0].config)
    batch = world.sample(np.random.default_rng(0), rows=8, length=50)
    places = world.across**2
    place, shade = batch.index % places, batch.index // places
    cell = torch.stack([place // world.across, place % world.across], -1)
    moved = (cell[:, :-1] + torch.from_numpy(ACTIONS)[batch.action[:, 1:]]).clamp(0, world.across - 1)
    later = ~batch.first[:, 1:]
    assert torch.equal(cell[:, 1:][later], moved[later])
    assert torch.equal(shade[:, 1:][later], shade[:, :-1][later])
    assert torch.equal(batch.terminated, place == places - 1) and batch.terminated.any()
    assert torch.equal(batch.first[:, 1:], batch.terminated[:, :-1]) and batch.first[:, 0].all()
    assert len(batch.frames.flatten(1).unique(dim=0)) == len(batch.frames)
