"""Everything that a dream remembers, as one flat set of batched tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldmodel.causal import where_rows


class DreamState:
    """The memory of `B` dreams: index it, branch it, save it.

    Stepping never writes into a state, it returns a new one, so a kept state can be gone on from any number of times.

    Attributes:
        tensors: name to tensor, each with the batch first: Mamba-2's windows and states, the rings of keys and values,
            the main network's last word, `key` and `step` of the noise, `elapsed` actions since the episode began, and
            `feature`, what an agent sees.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def batch_size(self) -> int:
        """B."""
        return self.tensors["key"].shape[0]

    @property
    def feature(self) -> Tensor:
        """`(B, feature width)`: what an agent sees of the last frame; zeros before the first."""
        return self.tensors["feature"]

    @property
    def main_tokens(self) -> Tensor:
        """`(B,)` int64: how many tokens the main network has taken since the row's episode began."""
        return self.tensors["main.count"]

    def __getitem__(self, rows: int | slice | Tensor | Sequence[int]) -> DreamState:
        """Some of the rows: an index (kept as a batch of one), a slice, a mask or a sequence of indices."""
        if isinstance(rows, tuple):
            rows = list(rows)  # torch would take it for one index an axis
        if not isinstance(rows, slice) and torch.as_tensor(rows).dim() == 0:
            rows = torch.as_tensor(rows).view(1)  # also a number of numpy's, or a tensor that holds one
        return DreamState({name: value[rows] for name, value in self.tensors.items()})

    def where(self, mask: Tensor, other: DreamState) -> DreamState:
        """These rows where `mask` `(B,)` is True, `other`'s elsewhere."""
        return DreamState({n: where_rows(mask, value, other.tensors[n]) for n, value in self.tensors.items()})

    def put(self, rows: Tensor, other: DreamState) -> DreamState:
        """These rows, but at `rows` `(n,)` int64 those of `other`, one behind the other."""
        return DreamState({n: value.index_copy(0, rows, other.tensors[n]) for n, value in self.tensors.items()})

    def clone(self) -> DreamState:
        """A copy that shares no memory."""
        return DreamState({name: value.clone() for name, value in self.tensors.items()})

    def to(self, device: torch.device | str) -> DreamState:
        """The same state on another device."""
        return DreamState({name: value.to(device) for name, value in self.tensors.items()})

    def reseed(self, seeds: Tensor) -> DreamState:
        """The same memories with new noise: `seeds` `(B,)` int64 become the rows' keys and their steps count from 0."""
        seeds = seeds.to(self.tensors["key"]).clone()  # the caller may go on to change his own
        return DreamState(self.tensors | {"key": seeds, "step": torch.zeros_like(seeds)})

    @staticmethod
    def cat(states: Sequence[DreamState]) -> DreamState:
        """Several states one behind the other."""
        return DreamState({n: torch.cat([s.tensors[n] for s in states]) for n in states[0].tensors})
