"""Run folders: what is loaded is what was saved, to the bit, and what is broken is named in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import CONFIGS, EXTRA, STRIDE, random_actions, random_frames, random_model

from worldmodel.checkpoint import RENAMED, load_environment, load_model, save_model, save_weights, write_atomically
from worldmodel.errors import UserError
from worldmodel.model import WorldModel

ENVIRONMENT = {"id": "Some-v0", "wrappers": [], "kwargs": {}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_model(tmp_path, random_model(STRIDE), ENVIRONMENT)
    return tmp_path


@torch.no_grad()
def dream(model: WorldModel) -> list[torch.Tensor]:
    config = model.config
    state = model.initial_state(2, seed=5)
    state, out = model.observe(state, None, random_frames(config, 2, 1), torch.ones(2, dtype=torch.bool))
    seen = [out.feature, model.decode(out)]
    for i in range(3):
        state, out = model.imagine(state, random_actions(config, 2, seed=i))
        seen += [out.feature, out.reward, out.terminated, model.decode(out)]
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_model_dreams_the_same_bits(tmp_path: Path, name: str) -> None:
    model = random_model(CONFIGS[name]).requires_grad_(False)  # or torch goes other ways, with other last bits
    if name.startswith("vector"):
        model.frame_stage.patches.fit(torch.randn(50, 5) * 3 + 1)  # what was fitted to the data travels, too
    save_model(tmp_path, model, ENVIRONMENT)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert load_environment(tmp_path) == ENVIRONMENT
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for label, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[label]), label
    assert all(torch.equal(a, b) for a, b in zip(dream(model), dream(loaded)))


def test_saving_leaves_whole_files_and_nothing_else(run: Path) -> None:
    save_model(run, random_model(EXTRA, seed=1), ENVIRONMENT)
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "world_model.safetensors"]
    assert load_model(run).config == EXTRA


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def refused(run: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(run)
    message = str(caught.value)
    assert "\n" not in message
    assert str(run) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", ["config.json", "world_model.safetensors"])
def test_a_truncated_file_is_named(run: Path, name: str, share: float) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(share * len(content))])
    assert name in refused(run)


@pytest.mark.parametrize("name", ["config.json", "world_model.safetensors"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    assert name in refused(run)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "nowhere" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"{}", b"\xff\xfe", b'{"format_version": 1, "model": 3}'])
def test_a_config_that_is_something_else_is_named(run: Path, content: bytes) -> None:
    (run / "config.json").write_bytes(content)
    assert "config.json" in refused(run)


@pytest.mark.parametrize(
    "part,field,value",
    [
        ("frame", "patch", 0),
        ("frame", "width", "wide"),
        ("frame", "chunks", None),
        ("frame", "boundary", "nowhere"),
        ("frame", "wings", 2),
        ("causal", "width", 15),
        ("causal", "extra", -1.0),
        ("main", "heads", 0),
        ("main", "layers", "m1x1"),
        ("main", "window", 0),
        ("mamba", "headdim", 7),
        ("latent", "kind", "beta"),
        ("latent", "groups", 2.5),
        ("action", "sizes", [0]),
        ("action", "sizes", []),
        ("action", "kind", "text"),
        ("observation", "shape", [12, 16]),
        ("observation", "shape", [12, 16, 0]),
        ("observation", "kind", "sound"),
    ],
)
def test_a_config_that_no_model_can_have_is_named(run: Path, part: str, field: str, value: object) -> None:
    config = json.loads((run / "config.json").read_text())
    where = config["model"][part]
    (where[0] if part == "causal" else where)[field] = value
    (run / "config.json").write_text(json.dumps(config))
    refused(run)


@pytest.mark.parametrize("version", [2, 99])
def test_a_run_from_the_future_asks_for_an_update(run: Path, version: int) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format_version": version}))
    assert "update" in refused(run)


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", random_model(EXTRA), ENVIRONMENT)
    (run / "world_model.safetensors").write_bytes((tmp_path / "other" / "world_model.safetensors").read_bytes())
    assert "does not fit" in refused(run)


def test_a_run_of_format_1_still_dreams_the_same(tmp_path: Path) -> None:
    """One causal stage where there is a tuple of them now, and other names of the same weights."""
    model = random_model(STRIDE).requires_grad_(False)
    save_model(tmp_path, model, {"id": "none"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"] |= {"format_version": 1, "causal": config["model"]["causal"][0]}
    for part in ("side", "time"):
        del config["model"][part]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, value in model.state_dict().items():
        for old, new in RENAMED.items():
            if name.startswith(new):
                name = old + name.removeprefix(new)
        weights[name] = value
    assert not set(weights) <= set(model.state_dict())
    save_weights(tmp_path, weights)
    loaded = load_model(tmp_path)
    assert loaded.config == STRIDE
    action = torch.tensor([1, 2])
    (_, mine), (_, theirs) = (m.imagine(m.initial_state(2), action) for m in (model, loaded))
    assert torch.equal(mine.feature, theirs.feature)
