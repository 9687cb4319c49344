"""What a model gives back: of whole segments for the losses, and of one frame of each row for whoever steps it.

Shape suffixes: B rows, T frames, K chunks of the fullest frame, P patches, Z latent width, E width d1, W what the
painter reads of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldmodel.chunks import Chunks
from worldmodel.loops import LoopNotes
from worldmodel.router import Routing
from worldmodel.seeing import Seen


@dataclass
class Pass:
    """What `forward` computed of a batch, for the losses.

    Attributes:
        seen: the distinct frames, as the frame stage sees them.
        chunks: of every frame, rows flat `(B * T, ...)`.
        posterior: `(B, T, K, parameters)`.
        latent: `(B, T, K, Z)` samples.
        y: `(B, T, 1 + K, E)`, at F_t and at each chunk token; `past` = `y[:, :, :K]` predicts the chunks.
        y_last: `(B, T, E)`, at the last token of each frame.
        routing: what the routers said, by stage; absent where boundaries are fixed.
        loops: how the looped core went; None without one.
    """

    seen: Seen
    chunks: Chunks
    posterior: Tensor
    latent: Tensor
    y: Tensor
    y_last: Tensor
    routing: dict[str, Routing]
    loops: LoopNotes | None = None


@dataclass
class StepOutput:
    """What one frame of `B` rows came to.

    Attributes:
        feature: `(B, feature width)`, what an agent sees.
        reward: `(B,)` what an environment pays: the event as sampled, times its expected size.
        reward_mean: `(B,)` its expectation.
        terminated: `(B,)` bool, sampled with the row's own noise.
        terminated_probability: `(B,)`.
        chunks: `(B,)` int64, chunks in the frame.
        starts: `(B, K)` int64, their first patches, -1 where absent.
        start_entropy: `(B,)` nats of choosing the starts, summed over the frame.
        latent, past: `(B, K, Z)` and `(B, K, E)`, all that `decode` needs,
        canvas: but for patches that are followed through time: then `(B, P, W)`, what the painter has before it.
    """

    feature: Tensor
    reward: Tensor
    reward_mean: Tensor
    terminated: Tensor
    terminated_probability: Tensor
    chunks: Tensor
    starts: Tensor
    start_entropy: Tensor
    latent: Tensor
    past: Tensor
    canvas: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that there is, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getitem__(self, rows: Tensor | slice) -> StepOutput:
        return StepOutput(**{name: value[rows] for name, value in self.tensors.items()})
