"""What becomes of a chunk's patches in its code, and what each patch is painted from.

Two ways. `WholeCode`: all of the code is of all of the chunk. `SlottedCode`: the code has slots, and each patch has its
own in it. A patch that was never seen beside those others is then coded and painted as it always was, and what a code
says can be foretold patch by patch. docs/hnet.md has what that is worth.

Shape suffixes: U distinct frames, n frames, P patches, K chunks of the fullest frame, D width d0, E width d1, Z latent
width, R readers, S slots, W what the painter is told of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.kernels.compaction import take
from worldmodel.latents import Latent


class WholeCode(nn.Module):
    """One code for the whole chunk. It never settles: loose pictures do not show all that a chunk can be.

    The first patch of a chunk cannot know where the chunk will end, so its vector also pools the whole span. A plain
    mean would mix a dozen patches in D numbers; each patch is weighed by its place first, in R ways. The way back is
    its mirror: R vectors a chunk, from which each patch takes what its place makes of them.
    """

    settles = False

    def __init__(self, config: ModelConfig, latent: Latent, patches: int) -> None:
        super().__init__()
        P, D, R = patches, config.frame.width, config.frame.readers
        self.size, self.readers, self.told_width = latent.parameters, R, R * D
        self.pool_gain = nn.Parameter(torch.randn(P, R, D))
        self.posterior = nn.Linear((1 + R) * D, latent.parameters)
        self.unpack = nn.Linear(latent.width, R * D)
        self.from_past = nn.Linear(config.causal[0].width, R * D, bias=False) if config.frame.paint_past else None
        self.read_gain = nn.Parameter(torch.randn(P, R, D) / R**0.5)

    def forward(self, h_UPD: Tensor, start_UK: Tensor, member_UKP: Tensor) -> Tensor:
        """The posterior's parameters `(U, K, parameters)`, from which patches start chunks and which are in them."""
        weighed = (h_UPD.unsqueeze(2) * self.pool_gain).flatten(2)  # (U, P, R * D)
        pooled = member_UKP @ weighed / member_UKP.sum(-1, keepdim=True).clamp(min=1).sqrt()
        return self.posterior(torch.cat([take(h_UPD, start_UK), pooled], dim=-1))

    def tell(self, latent: Tensor, past: Tensor | None) -> Tensor:
        """What the painter is told of each chunk, `(..., W)`, from its latent and the y that foretold it."""
        told = self.unpack(latent)
        return told if self.from_past is None or past is None else told + self.from_past(past)

    def read(self, told_nPW: Tensor) -> Tensor:
        """What each patch makes of what its chunk was told: `(n, P, D)`."""
        return (told_nPW.unflatten(-1, (self.readers, -1)) * self.read_gain).sum(2)


class SlottedCode(nn.Module):
    """A code of S slots that the patches of a chunk share out among them: the fewer they are, the more each has.

    Of chunks of n patches in the mean, patch p has the slots s with s = p mod n, so that whatever chunk it falls to, it
    has the same ones. Patches that meet in a slot, in a chunk that is longer, add their votes, and all are painted from
    it. All patches are told apart by the same weights.

    Raises:
        ValueError: the groups of a code cannot be shared out evenly.
    """

    settles = True  # with the encoder: codes that go on moving are foretold the worse
    own: Tensor

    def __init__(self, config: ModelConfig, latent: Latent, part: Tensor, strides: Sequence[int]) -> None:
        super().__init__()
        S, D, groups = config.latent.slots, config.frame.width, config.latent.groups
        if groups % S:
            raise ValueError(
                f"LatentConfig: {groups} groups cannot be shared out evenly among {S} slots; set latent.groups to a "
                f"multiple of {S}, or latent.slots to 0"
            )
        self.slots, self.size, self.told_width = S, latent.parameters, latent.width + D * config.frame.paint_past
        self.kinds = latent.parameters // latent.width  # normals have means and deviations, side by side
        self.register_buffer("own", shared_out(S, part, strides), persistent=False)
        R = self.own.shape[-1]
        self.posterior = nn.Linear(D, R * latent.parameters // S)
        self.unpack = nn.Linear(R * latent.width // S, D)
        self.from_past = nn.Linear(config.causal[0].width, D, bias=False) if config.frame.paint_past else None

    def forward(self, h_UPD: Tensor, start_UK: Tensor, member_UKP: Tensor) -> Tensor:
        """The posterior's parameters `(U, K, parameters)`, from which patches start chunks and which are in them."""
        own = self.own.to(h_UPD.dtype)
        votes = torch.einsum("uprq,psr->upsq", self.posterior(h_UPD).unflatten(-1, (own.shape[-1], -1)), own)
        sharers = (member_UKP @ own.sum(-1)).clamp(min=1).sqrt().unsqueeze(-1)  # (U, K, S, 1)
        said = (member_UKP @ votes.flatten(2)).unflatten(-1, (self.slots, -1)) / sharers
        return said.unflatten(-1, (self.kinds, -1)).transpose(-3, -2).flatten(-3)

    def tell(self, latent: Tensor, past: Tensor | None) -> Tensor:
        """What the painter is told of each chunk, `(..., W)`, from its latent and the y that foretold it."""
        if self.from_past is None:
            return latent
        y = self.from_past.weight.new_zeros(*latent.shape[:-1], self.from_past.in_features) if past is None else past
        return torch.cat([latent, self.from_past(y)], dim=-1)

    def read(self, told_nPW: Tensor) -> Tensor:
        """What each patch makes of what its chunk was told: `(n, P, D)`."""
        past = self.told_width - (self.from_past.out_features if self.from_past is not None else 0)
        code = told_nPW[..., :past].unflatten(-1, (self.slots, -1))
        x = self.unpack(torch.einsum("npsq,psr->nprq", code, self.own.to(code.dtype)).flatten(2))
        return x if self.from_past is None else x + told_nPW[..., past:]


def shared_out(slots: int, part_P: Tensor, strides: Sequence[int]) -> Tensor:
    """Which slots a patch has, and which of its slots each is: `(P, S, R)`, zeros and ones.

    Args:
        slots: S.
        part_P: the modality that each patch belongs to, in their order.
        strides: patches of a chunk of each modality, in the mean.
    """
    slot, owners = torch.arange(slots), []
    ranks = max(-(-slots // stride) for stride in strides)
    for modality, stride in enumerate(strides):
        place, among = torch.arange(int((part_P == modality).sum())), min(stride, slots)
        mine = slot % among == place[:, None] % among  # (patches of the modality, S)
        owners.append(mine.unsqueeze(-1) & F.one_hot(slot // among, ranks).bool())
    return torch.cat(owners).float()


Code = WholeCode | SlottedCode


def make_code(config: ModelConfig, latent: Latent, part_P: Tensor, strides: Sequence[int]) -> Code:
    """The way that the config asks for; the last two are as for `shared_out`."""
    if config.latent.slots:
        return SlottedCode(config, latent, part_P.cpu(), strides)
    return WholeCode(config, latent, len(part_P))
