"""The latent of a chunk: what is sampled in a dream instead of seen, behind one small interface.

Both kinds turn a vector of `parameters` numbers into a sample of `width` numbers, driven by a word of counter-based
noise (kernels/noise.py), so that a sample depends on its own row, step and chunk alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.config import LatentConfig
from worldmodel.kernels import noise


class CategoricalLatent:
    """`groups` one-hot vectors of `classes` each, with straight-through gradients (DreamerV2)."""

    def __init__(self, config: LatentConfig) -> None:
        self.groups, self.classes, self.unimix = config.groups, config.classes, config.unimix
        self.parameters = self.width = config.groups * config.classes

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.groups, self.classes))

    def sample(self, logits: Tensor, word: Tensor) -> Tensor:
        """A one-hot sample of each group, `(..., width)`; `word` `(...)` comes from `noise.row_hash`."""
        return self._one_hot(logits, noise.gumbel(word, self.width))

    def mode(self, logits: Tensor) -> Tensor:
        """The most likely class of each group."""
        return self._one_hot(logits, torch.zeros((), device=logits.device))

    def _one_hot(self, logits: Tensor, gumbel: Tensor) -> Tensor:
        hard = F.one_hot(self._grouped(logits.detach() + gumbel).argmax(-1), self.classes).flatten(-2).to(logits.dtype)
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return hard
        soft = self._grouped(logits).softmax(-1).flatten(-2)
        return hard + (soft - soft.detach())

    def _mixed(self, logits: Tensor) -> Tensor:
        # Keeps the KL finite. Never used in sampling: 1% in each of 64 groups would spoil every other frame.
        p = self._grouped(logits).softmax(-1)
        return ((1 - self.unimix) * p + self.unimix / self.classes).log()

    def kl(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """KL(posterior | prior) of one chunk in nats, summed over groups: `(...)`."""
        q, p = self._mixed(posterior), self._mixed(prior)
        return (q.exp() * (q - p)).sum((-2, -1))

    def entropy(self, logits: Tensor) -> Tensor:
        """In nats, summed over groups."""
        log_p = self._grouped(logits).log_softmax(-1)
        return -(log_p.exp() * log_p).sum((-2, -1))


class GaussianLatent:
    """`groups` independent normals; parameters are means and log standard deviations, side by side."""

    def __init__(self, config: LatentConfig) -> None:
        self.width = config.groups
        self.parameters = 2 * config.groups

    @staticmethod
    def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean, 4.0 * torch.tanh(log_std / 4.0)  # keeps the spread within e^-4 .. e^4

    def sample(self, parameters: Tensor, word: Tensor) -> Tensor:
        mean, log_std = self._split(parameters)
        return mean + log_std.exp() * noise.normal(word, self.width).to(mean.dtype)

    def mode(self, parameters: Tensor) -> Tensor:
        return self._split(parameters)[0]

    def kl(self, posterior: Tensor, prior: Tensor) -> Tensor:
        (m, s), (n, t) = self._split(posterior), self._split(prior)
        return (t - s + ((2 * s).exp() + (m - n) ** 2) / (2 * (2 * t).exp()) - 0.5).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        return (self._split(parameters)[1] + 1.4189385).sum(-1)  # 1/2 ln(2 pi e)


Latent = CategoricalLatent | GaussianLatent


def make_latent(config: LatentConfig) -> Latent:
    """The latent that the config asks for.

    Raises:
        ValueError: there is no such kind.
    """
    if config.kind == "categorical":
        return CategoricalLatent(config)
    if config.kind == "gaussian":
        return GaussianLatent(config)
    raise ValueError(f"latent kind must be categorical or gaussian, not {config.kind!r}")
