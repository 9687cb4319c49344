"""The model and its kernels run where there is nothing but torch and numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFUSED = ("gymnasium", "av", "tyro", "minigrid", "tqdm", "tensorboard", "safetensors", "matplotlib")
KERNELS = [
    f"worldmodel.kernels.{path.stem}"
    for path in sorted((ROOT / "kernels").glob("*.py"))
    # Triton's own kernels and those of libraries are imported only by whoever asks for them.
    if not path.stem.startswith(("triton_", "__")) and not path.stem.endswith("_library")
]
# A name in sys.meta_path is asked before anything is looked for on the disk.
HOOK = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {REFUSED} or name == "torch.utils.tensorboard":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HOOK + code], cwd=ROOT, capture_output=True, text=True)


def test_the_hook_refuses():
    done = python("import worldmodel.envs.dream")
    assert done.returncode == 1
    assert "No module named 'gymnasium'" in done.stderr


@pytest.mark.parametrize("names", [["worldmodel.model", "worldmodel.losses"], KERNELS], ids=["model", "kernels"])
def test_imports(names: list[str]):
    done = python(f"import importlib, sys\nfor name in {names}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_a_model_learns_and_dreams():
    done = python("""
import torch, worldmodel
from worldmodel.batch import Batch
from worldmodel.presets import preset
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.losses import LossConfig, world_model_loss

model = worldmodel.WorldModel(preset("tiny", ObservationSpec(shape=(16, 16, 3)), ActionSpec(sizes=(3,))))
begins = torch.tensor([[True, False, False]])
batch = Batch(
    torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8),
    torch.arange(3)[None], torch.zeros(1, 3, dtype=torch.int64),
    torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), begins, begins, torch.arange(3)[None],
)
loss, _ = world_model_loss(model, batch, LossConfig(), key=torch.arange(1), generator=torch.Generator())
loss.backward()
model.imagine(model.initial_state(2), torch.zeros(2, dtype=torch.int64))
""")
    assert done.returncode == 0, done.stderr


def test_a_broken_gymnasium_is_not_taken_for_a_missing_one():
    done = python("sys.meta_path.pop(0); sys.modules['gymnasium.envs'] = None; import worldmodel")
    assert done.returncode == 1
    assert "gymnasium.envs" in done.stderr
