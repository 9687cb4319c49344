"""A run folder's files, each written whole or not at all.

config.json                format version, the model's config, the environment it was learned from
world_model.safetensors    weights
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from worldmodel.config import ModelConfig
from worldmodel.errors import UserError
from worldmodel.model import WorldModel

FORMAT_VERSION = 1
# What parameters were called where config.json says that the model has format 1.
RENAMED = {
    "embed_latent.": "contents.latent.",
    "embed_start": "contents.start",
    "embed_length": "contents.length",
    "causal_stage.frame_token": "contents.frame",
    "causal_stage.side1.": "causal_stage.widen.",
    "causal_stage.side2.": "causal_stage.inner.widen.",
    "causal_stage.main.": "causal_stage.inner.stack.",
}
CONFIG_FILE = "config.json"
MODEL_FILE = "world_model.safetensors"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Put `content` at `path` in one step: whoever is killed meanwhile leaves the old file, never half of a new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_unfinished(path: Path) -> None:
    """Delete what a writer of this file left who was killed meanwhile; nobody may be writing it."""
    for half in path.parent.glob(f".{path.name}.*"):
        half.unlink()


def save_config(run: str | Path, config: ModelConfig, environment: dict[str, Any]) -> None:
    """Write `config.json`: `environment` is what `worldmodel.envs.make.environment_spec` says."""
    content = {"format_version": FORMAT_VERSION, "model": config.to_dict(), "environment": environment}
    write_atomically(Path(run) / CONFIG_FILE, json.dumps(content, indent=1).encode())


def save_weights(run: str | Path, weights: dict[str, torch.Tensor]) -> None:
    """Write `world_model.safetensors` from a state dict."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_atomically(Path(run) / MODEL_FILE, safetensors.torch.save(tensors))


def save_model(run: str | Path, model: WorldModel, environment: dict[str, Any]) -> None:
    """Write config and weights of a model."""
    save_config(run, model.config, environment)
    save_weights(run, model.state_dict())


def read_config(run: str | Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        UserError: the file is missing, damaged, or of a newer version.
    """
    path = Path(run) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it has no {CONFIG_FILE} (make one with `worldmodel train`)")
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        content["model"], content["environment"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or train the run anew") from error
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, but this worldmodel reads {FORMAT_VERSION}: update it")
    return content


def load_config(run: str | Path) -> ModelConfig:
    """The model's config of a run."""
    try:
        return ModelConfig.from_dict(read_config(run)["model"])
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{Path(run) / CONFIG_FILE} does not describe a model: {error}") from error


def load_environment(run: str | Path) -> dict[str, Any]:
    """The environment a run was learned from, as `worldmodel.envs.make` rebuilds it."""
    return read_config(run)["environment"]


def load_model(run: str | Path, device: str | torch.device = "cpu", *, loops: float | None = None) -> WorldModel:
    """The world model of a run, in evaluation mode.

    Args:
        run: the folder.
        device: where its weights go.
        loops: how often a looped core runs, see `WorldModel.set_loops`.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit the config, or there can be no such loops.
    """
    config = load_config(run)
    path = Path(run) / MODEL_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist yet: train the run first with `worldmodel train --out {run}`")
    try:
        model = WorldModel(config)
        weights = safetensors.torch.load_file(path)
        if read_config(run)["model"].get("format_version", 1) == 1:
            weights = {_today(name): value for name, value in weights.items()}
        model.load_state_dict(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or train the run anew") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not fit {CONFIG_FILE}: {error}".splitlines()[0]) from error
    if loops is not None:
        try:
            model.set_loops(loops)
        except ValueError as error:
            raise UserError(f"the run {run} cannot loop {loops:g} times: {error}") from error
    return model.to(device).eval().requires_grad_(False)


def _today(name: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
