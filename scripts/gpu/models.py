"""Whole models on the GPU: the CPU's numbers, steps against the parallel pass, 200 updates, 1,000 dreamed frames."""

from __future__ import annotations

import collections
import copy
import functools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.batch import Batch
from worldmodel.captured import CapturedImagination
from worldmodel.config import ModelConfig
from worldmodel.losses import LossConfig, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.scripts.gpu.sizes import ACTIONS, BlockWorld, Sizes
from worldmodel.state import DreamState

LOSS_LIMIT, GRADIENT_LIMIT, STEP_LIMIT = 1e-4, 1e-3, 1e-3
LONGEST_TRAINING, LONGEST_DREAM = 60.0, 5.0  # seconds; what is slower is measured on fewer updates and frames
_trained: dict[str, WorldModel] = {}  # by boundaries: dreams are those of a model that has learned, if there is one


def fresh_model(config: ModelConfig, seed: int = 0) -> WorldModel:
    """On the CPU, with the same weights on every machine."""
    torch.manual_seed(seed)
    return WorldModel(config).train()


def small_batch(config: ModelConfig, rows: int, length: int) -> Batch:
    """Its frames are only those that occur."""
    batch = BlockWorld(config).sample(np.random.default_rng(0), rows, length)
    distinct, batch.index = batch.index.unique(return_inverse=True)
    batch.frames = batch.frames[distinct]
    return batch


def as_on_the_cpu(sizes: Sizes, boundary: str, *, device: torch.device) -> dict[str, Any]:
    """Loss and gradient of one batch in fp32, here and on the CPU."""
    config = sizes.with_boundaries(boundary)
    batch = small_batch(config, rows=2, length=min(12, sizes.frames))
    there = fresh_model(config)
    here = copy.deepcopy(there).to(device)
    results = []
    for model, part in ((there, batch), (here, batch.to(device))):
        key = torch.arange(2, device=model.device)
        generator = torch.Generator().manual_seed(0)
        total, notes = world_model_loss(model, part, LossConfig(), key=key, generator=generator)
        total.backward()
        gradient = {n: p.grad.detach().cpu() for n, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            seen = model.eval()(part, key)
        results.append((float(total.detach()), gradient, {n: float(v) for n, v in notes.items()}, seen))
    (wanted, right, terms, expected), (loss, gradient, got_terms, got) = results
    errors = {n: float((gradient[n] - g).norm() / g.norm().clamp(min=1e-12)) for n, g in right.items() if n in gradient}
    whole = [torch.cat([grads[n].flatten() for n in right]) for grads in (gradient, right)]
    loss_error, gradient_error = abs(loss - wanted) / abs(wanted), float((whole[0] - whole[1]).norm() / whole[1].norm())
    out = {
        "loss": loss,
        "loss_on_cpu": wanted,
        "loss_error": loss_error,
        "gradient_norm_on_cpu": float(whole[1].norm()),
        "gradient_error": gradient_error,
        "worst_gradients": dict(sorted(errors.items(), key=lambda item: -item[1])[:5]),
        "worst_terms": {n: [got_terms[n], v] for n, v in terms.items() if abs(got_terms[n] - v) > LOSS_LIMIT * abs(v)},
        # Classes and starts are choices: where two are nearly as likely, the last digit decides.
        "codes_that_differ": _differing(got.latent, expected.latent),
        "starts_that_differ": _differing(got.chunks.start, expected.chunks.start),
    }
    return out | _verdict(loss_error < LOSS_LIMIT and gradient_error < GRADIENT_LIMIT)


def _verdict(good: bool) -> dict[str, str]:
    return {"status": "pass" if good else "fail"}


def _differing(got: Tensor, expected: Tensor) -> int | str:
    if got.shape != expected.shape:
        return f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    return int(((got.cpu() - expected.cpu()).abs() > 1e-4).sum())


@torch.no_grad()
def steps_as_parallel(sizes: Sizes, boundary: str, *, device: torch.device) -> dict[str, Any]:
    """`observe` frame by frame against the whole-row pass, in fp32."""
    config = sizes.with_boundaries(boundary)
    length = min(16, sizes.frames)
    batch = small_batch(config, rows=4, length=length).to(device)
    model, key = fresh_model(config).to(device), torch.arange(4, device=device)
    model(batch, key)  # so that routers have their quantiles
    seen = model.eval()(batch, key)
    state, errors = model.initial_state(4, key), []
    for t in range(length):
        frame = batch.frames[batch.index[:, t]]
        state, out = model.observe(state, batch.action[:, t], frame, batch.first[:, t])
        wanted = seen.y_last[:, t]
        errors.append(float((out.feature[:, : wanted.shape[-1]] - wanted).norm() / wanted.norm()))
    worst = max(errors) if all(map(math.isfinite, errors)) else math.nan
    return {"errors_by_step": errors, "worst": worst} | _verdict(worst < STEP_LIMIT)


def training(sizes: Sizes, boundary: str, layout: str, updates: int, *, device: torch.device) -> dict[str, Any]:
    """Updates under bf16 autocast with fp32 parameters; frames a second are those of the rows."""
    config, rng = sizes.with_boundaries(boundary), np.random.default_rng(0)
    world, model = BlockWorld(config), fresh_model(config).to(device)
    model.forward = functools.partial(model.forward, packed=layout == "packed")  # type: ignore[method-assign]
    batches = [world.sample(rng, sizes.rows, sizes.frames).to(device) for _ in range(8)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def update(number: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (number + 1) / 20)
        key = (torch.arange(sizes.rows, device=device) << 32) + number
        generator = torch.Generator().manual_seed(number)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            batch = batches[number % len(batches)]
            loss, _ = world_model_loss(model, batch, LossConfig(), key=key, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    warm = min(10, updates // 4)
    losses = [update(n) for n in range(warm)]
    out: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    out["host_synchronisations"] = _synchronisations(lambda: update(warm), device)
    _begin(device)
    began = time.perf_counter()
    for n in range(warm + 1, updates):
        losses.append(update(n))
        if time.perf_counter() - began > LONGEST_TRAINING:
            break
    _finish(device)
    seconds = time.perf_counter() - began
    values = torch.stack(losses).cpu()
    edge = max(1, len(losses) // 10)
    first, last = float(values[:edge].mean()), float(values[-edge:].mean())
    out |= {"loss_first": first, "loss_last": last, "finite": bool(values.isfinite().all())}
    out |= {"updates": len(losses) + 1, "update_ms": 1e3 * seconds / (len(losses) - warm)}
    out["frames_per_second"] = sizes.rows * sizes.frames / out["update_ms"] * 1e3
    del model.forward  # back to the class's own
    _trained[boundary] = model.eval()
    return out | _peak(device) | _verdict(out["finite"] and last < first)


def _synchronisations(work: Any, device: torch.device) -> dict[str, Any] | None:
    """How often the host waits for the card, and in which lines; not every way of waiting is counted by torch."""
    if device.type != "cuda":
        work()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message).lower()]
    lines = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found)
    return {"count": len(found), "lines": dict(lines.most_common(20))}


@torch.no_grad()
def dreaming(sizes: Sizes, boundary: str, rows: int, how: str, frames: int, *, device: torch.device) -> dict[str, Any]:
    """Some `frames` of latent dreams, `rows` at once, in "fp32" or under "bf16" autocast, as they are or "captured"."""
    model = _trained.get(boundary)
    trained = model is not None
    if model is None:
        model = fresh_model(sizes.with_boundaries(boundary)).to(device)
        model(small_batch(model.config, 4, min(16, sizes.frames)).to(device), torch.arange(4, device=device))
        model.eval()
    pictures = BlockWorld(model.config).frames.to(device)
    frame = pictures[torch.arange(rows, device=device) % len(pictures)]
    first = torch.ones(rows, dtype=torch.bool, device=device)
    state, _ = model.observe(model.initial_state(rows), None, frame, first)
    actions = torch.randint(len(ACTIONS), (64, rows), device=device)
    chunks: list[Tensor] = []

    def dream(imagine: Callable[..., Any], state: DreamState, steps: int) -> DreamState:
        for n in range(steps):
            state, out = imagine(state, actions[n % len(actions)])
        chunks.append(out.chunks.float().mean())
        return state

    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=how.startswith("bf16")):
        imagine: Callable[..., Any] = model.imagine
        off = 0.0
        if how.endswith("captured"):
            imagine = CapturedImagination(model, rows).imagine
            features = [step(state, actions[0])[1].feature for step in (model.imagine, imagine)]
            off = float((features[0] - features[1]).abs().max())
        state = dream(imagine, state, 3)
        _begin(device)
        began, steps = time.perf_counter(), 0
        while steps * rows < frames or steps < 20:
            state = dream(imagine, state, 10)
            steps += 10
            _finish(device)
            if (seconds := time.perf_counter() - began) > LONGEST_DREAM:
                break
    finite = bool(state.feature.isfinite().all())
    out = {"frames": steps * rows, "trained": trained, "chunks_a_frame": float(torch.stack(chunks).mean())}
    out |= {"step_ms": 1e3 * seconds / steps, "frames_per_second": steps * rows / seconds, "finite": finite}
    out |= {"differs_from_eager": off} if how.endswith("captured") else {}
    return out | _peak(device) | _verdict(finite and off < STEP_LIMIT)


def _begin(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> dict[str, int]:
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
