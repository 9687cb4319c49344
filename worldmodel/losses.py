"""What the model is trained on: one number a term, all of them a mean over frames.

Shape suffixes: B rows, T frames, K chunks, P patches, V values of a patch, n decoded frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.batch import Batch
from worldmodel.draws import frame_draws
from worldmodel.kernels.compaction import spread
from worldmodel.kernels.noise import row_hash
from worldmodel.kernels.noise import uniform as uniform_noise
from worldmodel.model import WorldModel
from worldmodel.outputs import Pass
from worldmodel.seeing import Seen, loose_frames, see_clips, see_loose

TRIAL = 5  # stream of a key's noise
LOOSE = 1 << 61  # sets the keys of loose frames apart from those of rows


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms. All are sums over a frame, so that more chunks are never free."""

    reconstruction: float = 1.0  # of the summed squared error of a frame, values in [0, 1]
    dynamics: float = 1.0  # prior towards posterior
    representation: float = 0.0  # posterior towards prior; codes without slots want 0.05, much more empties them
    standard: float = 0.05  # of pictures: normal codes towards the standard normal, or nothing but their mean is left
    free_nats: float = 1.0  # a frame's representation cost below this is free; the prior's training never is
    start: float = 1.0
    changes: float = 1.0  # which patches are new, where they are followed through time
    reward: float = 1.0
    terminated: float = 1.0
    ratio: float = 0.03  # H-Net's alpha
    trial: float = 1.0  # of a frame's router that learns by trying
    foresight: float = 1.0  # of what each patch is, to a router by surprise
    paint: int = 8  # frames of the rows painted in an update, beside the loose ones: pixels are most of the cost
    withhold_past: float = 0.5  # of those, painted from the latents alone, where the painter sees the past at all


def same_shape(a: Tensor, b: Tensor) -> None:
    """A loss between shapes that broadcast trains a mean frame without a word. Not here.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"a loss was asked for between shapes {tuple(a.shape)} and {tuple(b.shape)}")


def world_model_loss(
    model: WorldModel, batch: Batch, config: LossConfig, *, key: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """One update's loss.

    Args:
        model: in training mode.
        batch: the segments.
        config: weights.
        key: `(B,)` int64 noise key of each row.
        generator: on the CPU, decides which frames are painted and which of them without their past.

    Returns:
        The loss, and every term and statistic by its TensorBoard name (detached).
    """
    run = model(batch, key)
    # What came before a piece that begins in mid-episode is unknown, so nobody can be asked to predict its first frame.
    predictable = (~batch.start | batch.first).float()
    arrived = (~batch.start).float()
    terms: dict[str, Tensor] = {}
    notes: dict[str, Tensor] = {}

    terms["reconstruction"] = reconstruction_loss(model, run, config, key=key, generator=generator)
    if model.frame_stage.cutting.trying and not model.frame_stage.settled:
        some = loose if len(loose := loose_frames(batch)) else torch.arange(len(batch.frames), device=key.device)
        terms["trial"] = trial_loss(model, batch.frames[some], key[0])
    if model.frame_stage.cutting.foresight is not None and not model.frame_stage.settled:
        terms["foresight"] = foresight_loss(model, run.seen.patches)
    dynamics, representation = latent_kl(model, run, config.free_nats)
    terms["dynamics"] = _mean(dynamics, predictable)
    terms["representation"] = _mean(representation, predictable)
    if model.predicts_starts:
        start, entropy = start_loss(model, run)
        terms["start"] = _mean(start, predictable)
        notes["latent/start_entropy"] = _mean(entropy, predictable)
    if run.seen.changed is not None:
        terms["changes"] = _mean(change_loss(model, run), arrived)
        notes["latent/changes"] = _mean(run.seen.changed.sum(-1).float(), arrived)
    said = model.outcome(run.y_last)
    paid = (batch.reward != 0).float()
    same_shape(said.event, batch.reward)
    sized = model.outcome.size_loss(said, batch.elapsed, batch.reward) * paid
    terms["reward"] = _mean(F.binary_cross_entropy_with_logits(said.event, paid, reduction="none") + sized, arrived)
    ended = F.binary_cross_entropy_with_logits(said.terminated, batch.terminated.float(), reduction="none")
    terms["terminated"] = _mean(ended, arrived)
    if ratios := [r.ratio_loss for r in run.routing.values() if r.ratio_loss is not None]:
        terms["ratio"] = torch.stack(ratios).sum()
    for name, r in run.routing.items():
        notes |= {f"router/{name}_F": r.hard_rate, f"router/{name}_G": r.soft_rate}

    if run.loops is not None:
        notes |= {
            "loops/mean": run.loops.loops,
            "loops/token_correlation": run.loops.correlation,
            "loops/moved_in_the_last": run.loops.moved,
        }
    with torch.no_grad():
        valid = run.chunks.valid.view(*batch.index.shape, -1)
        notes["latent/kl"] = _mean(dynamics, predictable)
        notes["latent/posterior_entropy"] = (model.latent.entropy(run.posterior) * valid).sum(-1).mean()
        notes["latent/chunks"] = valid.sum(-1).float().mean()
        notes["data/distinct_share"] = torch.tensor(len(batch.index.unique()) / batch.index.numel())
    return _together(terms, config, notes)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    same_shape(x, weight)
    return (x * weight).sum() / weight.sum().clamp(min=1)


def reconstruction_loss(
    model: WorldModel, run: Pass, config: LossConfig, *, key: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of some of the frames, summed over a frame; of what is one of n choices the cross-entropy.

    Not the absolute error: its gradient is as large for noise on forty good tiles as for the one key that is missing,
    and the key never comes.
    """
    stage, seen = model.frame_stage, run.seen
    rows = _some_distinct(seen, config.paint, generator)
    with_past = (torch.rand(len(rows), generator=generator) >= config.withhold_past).to(rows.device)
    which = seen.index.flatten()[rows]
    canvas, gate = canvas_of(model, run, rows, with_past)
    if len(loose := seen.loose()):
        draws = frame_draws(key[0] ^ LOOSE, loose, seen.posterior.shape[1], model.latent.draws)
        told = stage.code.tell(model.latent.infer(seen.posterior[loose], draws.latent), None)
        chunks, which = seen.chunks.rows(loose), torch.cat([which, loose])
        canvas = torch.cat([canvas, spread(told, chunks.of_patch)])
        if gate is not None:
            own = gate.new_ones(len(loose), gate.shape[1]) if chunks.gate is None else chunks.gate
            gate = torch.cat([gate, own])
    painted, target = stage.paint_canvas(canvas, gate), seen.patches[which]
    same_shape(painted, target)
    return stage.patches.error(painted, target).mean()


def canvas_of(model: WorldModel, run: Pass, rows: Tensor, with_past: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the painter has before it of some frames, each patch from the chunk it was in when it was new.

    Args:
        model: that made the pass.
        run: the pass.
        rows: `(n,)` int64, which of the `B * T` frames.
        with_past: `(n,)` bool, whether the painter may see the past, if it does at all.

    Returns:
        The canvas and the gate of `FrameStage.paint_canvas`.
    """
    stage, seen = model.frame_stage, run.seen
    tell, latent, past = stage.code.tell, run.latent.flatten(0, 1), run.y[:, :, :-1].flatten(0, 1)
    with_past = with_past[:, None, None]
    if seen.changed is None or seen.gate is None:
        chunks = seen.chunks.rows(seen.index.flatten()[rows])
        return spread(tell(latent[rows], past[rows] * with_past), chunks.of_patch), chunks.gate
    by, latent = seen.painted_by().flatten(0, 1)[rows], latent.flatten(0, 1)
    canvas = tell(latent, None)[by]
    if stage.code.from_past is not None:
        canvas = torch.where(with_past, tell(latent, past.flatten(0, 1))[by], canvas)
    gate, of_chunks = seen.gate.flatten(0, 1)[rows], seen.chunks.gate
    return canvas, gate if of_chunks is None else gate * of_chunks[seen.index.flatten()[rows]]


def picture_loss(
    model: WorldModel, batch: Batch, config: LossConfig, *, key: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the first updates: loose frames are coded and painted, their order does not matter yet.

    Where patches are followed through time they come as clips, of patches that move and patches that stand still.

    Arguments and result are those of `world_model_loss`.
    """
    stage = model.frame_stage
    loose = loose_frames(batch)
    chosen = loose if len(loose) else torch.arange(len(batch.frames), device=batch.index.device)
    if stage.time is not None and not stage.time.learned:
        clips = see_clips(stage, batch.frames[chosen], key[0])
        target, chunks, posterior, routing = clips.patches, clips.chunks, clips.posterior, clips.routing.get("frame")
    else:
        target, chunks, posterior, routing = see_loose(stage, batch.frames[chosen], key[0])
        clips = None
    draws = frame_draws(key[0] ^ LOOSE, chosen, posterior.shape[1], model.latent.draws)
    latent = model.latent.infer(posterior, draws.latent)
    if clips is None:
        painted = stage.decode(latent, None, chunks)
    else:
        painted = stage.paint_canvas(stage.code.tell(latent, None).flatten(0, 1)[clips.painted_by()[0]], chunks.gate)
    same_shape(painted, target)
    terms = {"reconstruction": stage.patches.error(painted, target).mean()}
    if model.config.latent.kind == "gaussian":
        unasked = model.latent.cost(latent, posterior, torch.zeros_like(posterior))
        terms["standard"] = (unasked * chunks.valid).sum(-1).mean()
    if stage.cutting.trying:
        terms["trial"] = trial_loss(model, batch.frames[chosen], key[0])
    if stage.cutting.foresight is not None:
        terms["foresight"] = foresight_loss(model, target)
    if routing is not None and routing.ratio_loss is not None:
        terms["ratio"] = routing.ratio_loss
    notes = {"latent/posterior_entropy": (model.latent.entropy(posterior) * chunks.valid).sum(-1).mean()}
    if routing is not None:
        notes |= {"router/frame_F": routing.hard_rate, "router/frame_G": routing.soft_rate}
    return _together(terms, config, notes)


def _together(
    terms: dict[str, Tensor], config: LossConfig, notes: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighed sum of the terms, and what is logged of it, beside the notes: every term and their sum."""
    total = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    logged = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": total} | notes
    return total, {name: value.detach() for name, value in logged.items()}


def foresight_loss(model: WorldModel, patches_UPV: Tensor) -> Tensor:
    """Squared error of patches that are foretold from those before them, summed over a frame. Nothing else learns."""
    assert model.frame_stage.cutting.foresight is not None
    return model.frame_stage.cutting.foresight(model.frame_stage.small(patches_UPV)).sum(1).mean()


def trial_loss(model: WorldModel, frames: Tensor, key: Tensor) -> Tensor:
    """Cut each frame in two ways that are drawn; the way with which it is painted better becomes more likely.

    Args:
        model: whose router tries. Nothing else has a gradient.
        frames: `(U, *observation shape)`.
        key: `()` int64.
    """
    stage, n = model.frame_stage, len(frames)
    row = torch.arange(2 * n, device=frames.device)
    uniform = uniform_noise(row_hash(key.expand(2 * n), row, TRIAL), stage.patches.count)
    target, chunks, posterior, routing = see_loose(stage, torch.cat([frames, frames]), None, uniform)
    assert routing is not None and routing.log_probability is not None
    with torch.no_grad():
        draws = frame_draws(key ^ LOOSE, row, posterior.shape[1], model.latent.draws)
        painted = stage.decode(model.latent.infer(posterior, draws.latent), None, chunks)
        error = stage.patches.error(painted, target)
        gain = error.roll(n) - error  # over the other way
        gain = gain / gain.std().clamp(min=1e-6)
    return -(gain * routing.log_probability).mean()


def _some_distinct(seen: Seen, n: int, generator: torch.Generator) -> Tensor:
    """Up to n positions of the flat batch, no frame twice: what is seen all the time needs no more paint."""
    index = seen.index.flatten()
    shuffled = torch.randperm(index.numel(), generator=generator).to(index.device)
    which = index[shuffled]
    place = torch.arange(len(which), device=which.device)
    earliest = torch.full((len(seen.patches),), len(which), device=which.device)
    earliest = earliest.scatter_reduce(0, which, place, "amin").sort().values
    earliest = earliest[earliest < len(which)][:n]  # loose frames have no place
    return shuffled[earliest]


def latent_kl(model: WorldModel, run: Pass, free_nats: float) -> tuple[Tensor, Tensor]:
    """Both directions of the balanced KL, `(B, T)`, summed over a frame's chunks."""
    B, T = run.y.shape[:2]
    start, valid = run.chunks.start.view(B, T, -1), run.chunks.valid.view(B, T, -1)
    changed = None if run.seen.changed is None else run.seen.changed.unsqueeze(2)
    prior = model.prior(run.y[:, :, :-1], start, changed)
    same_shape(prior, run.posterior)
    code, posterior = run.latent, run.posterior
    dynamics = (model.latent.cost(code.detach(), posterior.detach(), prior) * valid).sum(-1)
    representation = dynamics.detach()
    if posterior.requires_grad:
        representation = (model.latent.cost(code, posterior, prior.detach()) * valid).sum(-1)
    # Free nats only here: on the prior they would leave that much doubt in every frame of a dream.
    return dynamics, representation.clamp(min=free_nats)


def change_loss(model: WorldModel, run: Pass) -> Tensor:
    """Cross-entropy of which patches are new, `(B, T)`, summed over a frame."""
    assert run.seen.changed is not None
    logits, changed = model.prior.change_logits(run.y[:, :, 0]), run.seen.changed.float()
    same_shape(logits, changed)
    return F.binary_cross_entropy_with_logits(logits, changed, reduction="none").sum(-1)


def start_loss(model: WorldModel, run: Pass) -> tuple[Tensor, Tensor]:
    """Cross-entropy of where each chunk starts and of the END behind the last, `(B, T)`; and the choices' entropy."""
    B, T = run.y.shape[:2]
    P = model.prior.patches
    start, valid = run.chunks.start.view(B, T, -1), run.chunks.valid.view(B, T, -1)
    nothing = torch.full_like(start[..., :1], P)
    target = torch.cat([torch.where(valid, start, P), nothing], dim=-1)  # (B, T, K + 1)
    last = torch.cat([torch.full_like(nothing, -1), torch.where(valid, start, P - 1)], dim=-1)
    asked = torch.cat([torch.ones_like(valid[..., :1]), valid], dim=-1)
    changed = None if run.seen.changed is None else run.seen.changed.unsqueeze(2)
    left = model.frame_stage.cutting.max_chunks - torch.arange(target.shape[-1], device=target.device)
    log_p = model.prior.start_logits(run.y, last, changed, left).log_softmax(-1)
    loss = -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_p.exp() * log_p.clamp(min=-100)).sum(-1)
    return (loss * asked).sum(-1), (entropy * asked).sum(-1)
