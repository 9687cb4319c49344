"""The random numbers of a frame: drawn all at once from one word of counter-based noise, and what is made of them.

A choice among C takes one uniform number and the inverse of the distribution function, not one Gumbel number for each
of the C: the same distribution for a sixteenth of the hashing, which was a tenth of a dream's time on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldmodel.kernels import noise
from worldmodel.kernels.few import softmax


@dataclass
class Draws:
    """Uniform numbers in (0, 1) for one frame of each row.

    Attributes:
        event, terminated: `(...)`, whether a reward is paid and whether the episode ends.
        start: `(..., K)`, where each chunk starts.
        latent: `(..., K, draws)`, for the latent of each chunk.
    """

    event: Tensor
    terminated: Tensor
    start: Tensor
    latent: Tensor


def frame_draws(key: Tensor, step: Tensor, chunks: int, latent_draws: int) -> Draws:
    """What rows draw at a step, whatever else is in the batch.

    Args:
        key: `(...)` int64.
        step: `(...)` int64, broadcastable to `key`.
        chunks: K; a larger K leaves the numbers of the first chunks as they are.
        latent_draws: numbers that one latent takes.
    """
    u = noise.uniform(noise.row_hash(key, step, 0), 2 + chunks * (1 + latent_draws))
    of_chunk = u[..., 2:].unflatten(-1, (chunks, 1 + latent_draws))
    return Draws(u[..., 0], u[..., 1], of_chunk[..., 0], of_chunk[..., 1:])


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """A sample of each categorical: `(..., C)` logits and `(...)` uniform numbers give `(...)` int64."""
    below = softmax(logits).cumsum(-1)
    # Strictly: a class of probability 0, and so of no width, is never hit.
    return (below <= uniform.unsqueeze(-1) * below[..., -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
