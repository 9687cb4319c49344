"""The latent of a chunk: what is sampled in a dream instead of seen, behind one small interface.

Both kinds turn a vector of `parameters` numbers into a sample of `width` numbers, driven by `draws` uniform numbers
(worldmodel/draws.py), so that a sample depends on its own row, step and chunk alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.config import LatentConfig
from worldmodel.draws import pick
from worldmodel.kernels.few import softmax
from worldmodel.kernels.noise import row_hash, to_normal, uniform

FORGET = 3  # the stream of a row's noise that says which groups are forgotten


class CategoricalLatent:
    """`groups` one-hot vectors of `classes` each.

    What is seen is coded by the most likely classes, without noise; only dreams draw. A sampled posterior leaves small,
    rare things (a key in the hand) to chance until its doubt is gone, and with its doubt its gradient is gone as well.
    Taking the best class leaves the distribution soft, and the straight-through gradient alive. docs/design.md has the
    measurement.
    """

    def __init__(self, config: LatentConfig) -> None:
        self.groups, self.classes, self.unimix = config.groups, config.classes, config.unimix
        self.parameters = self.width = config.groups * config.classes
        self.draws = config.groups

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.groups, self.classes))

    def _one_hot(self, index: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(self._grouped(like)).scatter_(-1, index.unsqueeze(-1), 1.0).flatten(-2)

    def infer(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The posterior's code, `(..., width)`, with straight-through gradients (DreamerV2); draws are not used."""
        hard = self.mode(logits.detach())
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return hard
        soft = softmax(self._grouped(logits)).flatten(-2)
        return hard + (soft - soft.detach())

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """A one-hot sample of each group, `(..., width)`, from `uniform` `(..., draws)`."""
        return self._one_hot(pick(self._grouped(logits), uniform), logits)

    def mode(self, logits: Tensor) -> Tensor:
        """The most likely class of each group."""
        return self._one_hot(self._grouped(logits).argmax(-1), logits)

    def cost(self, code: Tensor, posterior: Tensor, prior: Tensor) -> Tensor:
        """Nats to tell one chunk's code to somebody who knows the prior: `(...)`, summed over groups.

        The posterior is certain of its code, so -log prior(code) is the KL. A little of the uniform keeps it finite;
        never in sampling, where 1% in each of 64 groups would spoil every other frame.
        """
        p = softmax(self._grouped(prior))
        log_p = ((1 - self.unimix) * p + self.unimix / self.classes).log()
        return -(self._grouped(code) * log_p).sum((-2, -1))

    def entropy(self, logits: Tensor) -> Tensor:
        """In nats, summed over groups."""
        return torch.special.entr(softmax(self._grouped(logits))).sum((-2, -1))


class GaussianLatent:
    """`groups` independent normals; parameters are means and log standard deviations, side by side."""

    def __init__(self, config: LatentConfig) -> None:
        self.width = self.draws = config.groups
        self.parameters = 2 * config.groups

    @staticmethod
    def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean, 4.0 * torch.tanh(log_std / 4.0)  # keeps the spread within e^-4 .. e^4

    def infer(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        return self.sample(parameters, uniform)

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        mean, log_std = self._split(parameters)
        return mean + log_std.exp() * to_normal(uniform).to(mean.dtype)

    def mode(self, parameters: Tensor) -> Tensor:
        return self._split(parameters)[0]

    def cost(self, code: Tensor, posterior: Tensor, prior: Tensor) -> Tensor:
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


def partly_forgotten(code_BTKZ: Tensor, config: LatentConfig, key_B: Tensor) -> Tensor:
    """Codes of which a share of the groups is left out, so that nothing can be told by a whole frame known by heart.

    Args:
        code_BTKZ: of the chunks of rows of frames.
        config: with `forget` above 0.
        key_B: int64 noise key of each row.
    """
    B, T, K, Z = code_BTKZ.shape
    word = row_hash(key_B[:, None], torch.arange(T, device=key_B.device), FORGET)
    kept = uniform(word, K * config.groups).view(B, T, K, config.groups, 1) >= config.forget
    return (code_BTKZ.unflatten(-1, (config.groups, -1)) * kept).view(B, T, K, Z)
