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
from worldmodel.model import Pass, WorldModel


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms. All are sums over a frame, so that more chunks are never free."""

    reconstruction: float = 1.0  # of the summed squared error of a frame, values in [0, 1]
    dynamics: float = 1.0  # prior towards posterior
    representation: float = 0.05  # posterior towards prior; much more empties the code of what is rare
    free_nats: float = 1.0  # a frame's representation cost below this is free; the prior's training never is
    start: float = 1.0
    reward: float = 1.0
    terminated: float = 1.0
    ratio: float = 0.03  # H-Net's alpha
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
    seen = model(batch, key)
    # What came before a piece that begins in mid-episode is unknown, so nobody can be asked to predict its first frame.
    predictable = (~batch.start | batch.first).float()
    arrived = (~batch.start).float()
    terms: dict[str, Tensor] = {}
    notes: dict[str, Tensor] = {}

    terms["reconstruction"] = reconstruction_loss(model, batch, seen, config, key=key, generator=generator)
    dynamics, representation = _latent_kl(model, seen, config.free_nats)
    terms["dynamics"] = _mean(dynamics, predictable)
    terms["representation"] = _mean(representation, predictable)
    if not model.fixed_starts:
        start, entropy = _start_loss(model, seen)
        terms["start"] = _mean(start, predictable)
        notes["latent/start_entropy"] = _mean(entropy, predictable)
    event, terminated, size = model.outcome(seen.y_last)
    paid = (batch.reward != 0).float()
    same_shape(event, batch.reward)
    sized = model.outcome.size.loss(size, batch.reward) * paid
    terms["reward"] = _mean(F.binary_cross_entropy_with_logits(event, paid, reduction="none") + sized, arrived)
    ended = F.binary_cross_entropy_with_logits(terminated, batch.terminated.float(), reduction="none")
    terms["terminated"] = _mean(ended, arrived)
    if ratios := [r.ratio_loss for r in seen.routing.values() if r.ratio_loss is not None]:
        terms["ratio"] = torch.stack(ratios).sum()
    for name, r in seen.routing.items():
        notes |= {f"router/{name}_F": r.hard_rate, f"router/{name}_G": r.soft_rate}

    with torch.no_grad():
        valid = seen.chunks.valid.view(*batch.index.shape, -1)
        notes["latent/kl"] = _mean(dynamics, predictable)
        notes["latent/posterior_entropy"] = (model.latent.entropy(seen.posterior) * valid).sum(-1).mean()
        notes["latent/chunks"] = valid.sum(-1).float().mean()
        notes["data/distinct_share"] = torch.tensor(len(batch.frames) / batch.index.numel())
    total = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    logged = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": total} | notes
    return total, {name: value.detach() for name, value in logged.items()}


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    same_shape(x, weight)
    return (x * weight).sum() / weight.sum().clamp(min=1)


def reconstruction_loss(
    model: WorldModel, batch: Batch, seen: Pass, config: LossConfig, *, key: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of some of the frames, summed over a frame.

    Not the absolute error: its gradient is as large for noise on forty good tiles as for the one key that is missing,
    and the key never comes.
    """
    rows = _some_distinct(batch, config.paint, generator)
    with_past = (torch.rand(len(rows), generator=generator) >= config.withhold_past).to(rows.device)
    past = seen.y[:, :, :-1].flatten(0, 1)[rows] * with_past[:, None, None]
    latent, which = seen.latent.flatten(0, 1)[rows], batch.index.flatten()[rows]

    if len(loose := loose_frames(batch)):
        draws = frame_draws(key[0] + loose, loose.new_zeros(()), past.shape[1], model.latent.draws)
        latent = torch.cat([latent, model.latent.infer(seen.frame_posterior[loose], draws.latent)])
        past, which = torch.cat([past, past.new_zeros(len(loose), *past.shape[1:])]), torch.cat([which, loose])
    painted = model.frame_stage.decode(latent, past, seen.frame_chunks.rows(which))
    target = seen.patches[which]
    same_shape(painted, target)
    return (painted - target).square().sum((1, 2)).mean()


def loose_frames(batch: Batch) -> Tensor:
    """Indices of the frames that no row points to."""
    return (torch.bincount(batch.index.flatten(), minlength=len(batch.frames)) == 0).nonzero().squeeze(1)


def picture_loss(
    model: WorldModel, batch: Batch, config: LossConfig, *, key: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the first updates: loose frames are coded and painted, their order does not matter yet.

    Arguments and result are those of `world_model_loss`.
    """
    stage = model.frame_stage
    loose = loose_frames(batch)
    chosen = loose if len(loose) else torch.arange(len(batch.frames), device=batch.index.device)
    target = stage.patches(batch.frames[chosen])
    chunks, posterior, routing = stage.encode(target, torch.ones_like(chosen))
    draws = frame_draws(key[0] + chosen, chosen.new_zeros(()), posterior.shape[1], model.latent.draws)
    latent = model.latent.infer(posterior, draws.latent)
    painted = stage.decode(latent, None, chunks)
    same_shape(painted, target)
    error = (painted - target).square().sum((1, 2)).mean()
    total = config.reconstruction * error
    notes = {"loss/reconstruction": error, "latent/posterior_entropy": model.latent.entropy(posterior).sum(-1).mean()}
    if routing is not None:
        notes |= {"router/frame_F": routing.hard_rate, "router/frame_G": routing.soft_rate}
        if routing.ratio_loss is not None:
            total = total + config.ratio * routing.ratio_loss
    return total, {name: value.detach() for name, value in notes.items()}


def _some_distinct(batch: Batch, n: int, generator: torch.Generator) -> Tensor:
    """Up to n positions of the flat batch, no frame twice: what is seen all the time needs no more paint."""
    shuffled = torch.randperm(batch.index.numel(), generator=generator).to(batch.index.device)
    which = batch.index.flatten()[shuffled]
    place = torch.arange(len(which), device=which.device)
    earliest = torch.full((len(batch.frames),), len(which), device=which.device)
    earliest = earliest.scatter_reduce(0, which, place, "amin").sort().values
    earliest = earliest[earliest < len(which)][:n]  # loose frames have no place
    return shuffled[earliest]


def _latent_kl(model: WorldModel, seen: Pass, free_nats: float) -> tuple[Tensor, Tensor]:
    """Both directions of the balanced KL, `(B, T)`, summed over a frame's chunks."""
    B, T = seen.y.shape[:2]
    start, valid = seen.chunks.start.view(B, T, -1), seen.chunks.valid.view(B, T, -1)
    prior = model.prior(seen.y[:, :, :-1], start)
    same_shape(prior, seen.posterior)
    code, posterior = seen.latent, seen.posterior
    dynamics = (model.latent.cost(code.detach(), posterior.detach(), prior) * valid).sum(-1)
    # Free nats only here: on the prior they would leave that much doubt in every frame of a dream.
    representation = (model.latent.cost(code, posterior, prior.detach()) * valid).sum(-1).clamp(min=free_nats)
    return dynamics, representation


def _start_loss(model: WorldModel, seen: Pass) -> tuple[Tensor, Tensor]:
    """Cross-entropy of where each chunk starts and of the END behind the last, `(B, T)`; and the choices' entropy."""
    B, T = seen.y.shape[:2]
    P = model.prior.patches
    start, valid = seen.chunks.start.view(B, T, -1), seen.chunks.valid.view(B, T, -1)
    nothing = torch.full_like(start[..., :1], P)
    target = torch.cat([torch.where(valid, start, P), nothing], dim=-1)  # (B, T, K + 1)
    last = torch.cat([torch.full_like(nothing, -1), torch.where(valid, start, P - 1)], dim=-1)
    asked = torch.cat([torch.ones_like(valid[..., :1]), valid], dim=-1)
    log_p = model.prior.start_logits(seen.y, last).log_softmax(-1)
    loss = -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_p.exp() * log_p.clamp(min=-100)).sum(-1)
    return (loss * asked).sum(-1), (entropy * asked).sum(-1)
