"""Frames through the frame stage: whole rows for training, or one frame of each row on a memory.

Every distinct frame is encoded once, however often it occurs. What counts as distinct depends on what a frame's code
may know: the frame alone, the frame with the one before it and the action between, or, where patches are followed
through time, all that came before.

Shape suffixes: B rows, T frames, U distinct frames, P patches, V values of a patch, K chunks of the fullest frame,
D width d0, A entries of an action vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.batch import Batch, Codes
from worldmodel.chunks import Chunks
from worldmodel.frames import FrameStage
from worldmodel.layers import Memory
from worldmodel.modalities import TYPES
from worldmodel.router import Routing
from worldmodel.specs import ObservationSpec
from worldmodel.temporal import Changes

CLIP = 4  # frames of a clip that pictures are learned from


@dataclass
class Seen:
    """Rows of frames as the frame stage sees them.

    Attributes:
        patches: `(U, P, V)` of the distinct frames; the last of them may be loose, pointed to by no row.
        index: `(B, T)` int64, which of them each frame is.
        chunks: of the distinct frames.
        posterior: `(U, K, latent parameters)`.
        routing: what routers said, by name.
        changed: `(B, T, P)` bool, which patches are new; None where they are not followed through time.
        gate: `(B, T, P)` STE of how sure the router through time was; None likewise.
    """

    patches: Tensor
    index: Tensor
    chunks: Chunks
    posterior: Tensor
    routing: dict[str, Routing]
    changed: Tensor | None = None
    gate: Tensor | None = None

    def loose(self) -> Tensor:
        """Indices of the frames that no row points to."""
        return (torch.bincount(self.index.flatten(), minlength=len(self.patches)) == 0).nonzero().squeeze(1)

    def painted_by(self) -> Tensor:
        """`(B, T, P)` int64: the chunk, among all `B * T * K`, that a patch followed through time is painted from."""
        assert self.changed is not None
        B, T = self.index.shape
        at = torch.arange(T, device=self.index.device).view(1, T, 1)
        since = torch.where(self.changed, at, 0).cummax(1).values  # the frame at which it was new
        of_patch = self.chunks.of_patch[self.index].gather(1, since)
        row = torch.arange(B, device=self.index.device).view(B, 1, 1)
        return (row * T + since) * self.chunks.start.shape[1] + of_patch


def see_rows(stage: FrameStage, batch: Batch, action_BTA: Tensor, key: Tensor) -> Seen:
    """Encode the frames of a batch; in training, routers take their statistics from them, and `key` hides patches."""
    if stage.time is not None:
        return _through_time(stage, batch, action_BTA, key)
    patches, index, past = stage.patches(batch.frames), batch.index, None
    if batch.codes is not None:
        codes, loose = batch.codes, patches[len(batch.codes.start) :]
        if len(loose):
            chunks, posterior, _ = stage.encode(stage.look(loose), loose, None)
            codes = codes.and_of(Codes(chunks.start, chunks.valid, posterior))
        chunks = Chunks.at(codes.start, codes.valid, stage.patches.count)
        return Seen(patches, index, chunks, codes.posterior, {})
    if stage.past is not None:
        frame, before, action, index = _with_past(batch, action_BTA)
        with stage.at_rest():
            past = stage.past(stage.small(patches)[before.clamp(min=0)], action, before >= 0)
        patches = patches[frame]
    occurs = torch.bincount(index.flatten(), minlength=len(patches))
    chunks, posterior, routing = stage.encode(stage.look(patches, past, key), patches, occurs)
    return Seen(patches, index, chunks, posterior, {} if routing is None else {"frame": routing})


def _with_past(batch: Batch, action_BTA: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct pairs of frames with the action between: frame, frame before (-1: none), action, and the index."""
    before = _frames_before(batch)
    triples = torch.cat([torch.stack([batch.index, before], -1).double(), action_BTA.double()], dim=-1)
    triples[..., 2:].masked_fill_((before < 0).unsqueeze(-1), 0.0)
    distinct, index = torch.unique(triples.flatten(0, 1), dim=0, return_inverse=True)
    loose = loose_frames(batch)
    frame = torch.cat([distinct[:, 0].long(), loose])
    before = torch.cat([distinct[:, 1].long(), torch.full_like(loose, -1)])
    action = torch.cat([distinct[:, 2:], distinct.new_zeros(len(loose), distinct.shape[1] - 2)])
    return frame, before, action.to(action_BTA.dtype), index.view(batch.index.shape)


def _through_time(stage: FrameStage, batch: Batch, action_BTA: Tensor, key: Tensor) -> Seen:
    """All frames are distinct: what a patch is depends on all that came before it."""
    assert stage.time is not None
    B, T = batch.index.shape
    loose = loose_frames(batch)
    of_frames = stage.patches(batch.frames)
    patches = torch.cat([of_frames[batch.index.flatten()], of_frames[loose]])
    past = None
    if stage.past is not None:
        before = torch.cat([_frames_before(batch).flatten(), torch.full_like(loose, -1)])
        action = torch.cat([action_BTA.flatten(0, 1), action_BTA.new_zeros(len(loose), action_BTA.shape[-1])])
        with stage.at_rest():
            past = stage.past(stage.small(of_frames)[before.clamp(min=0)], action, before >= 0)
    x = stage.look(patches, past, key)
    reset = batch.start.clone()
    reset[:, 0] = True
    in_rows = (of_all[: B * T].unflatten(0, (B, T)) for of_all in (x, patches))
    with stage.at_rest():
        rows = stage.time(*in_rows, reset, torch.ones_like(reset, dtype=torch.float32))
    alone = _first_ones(stage, x[B * T :], patches[B * T :])
    h = torch.cat([rows.h.flatten(0, 1), alone.h.squeeze(1)])
    changed = torch.cat([rows.changed.flatten(0, 1), alone.changed.squeeze(1)])
    index = torch.arange(B * T, device=batch.index.device).view(B, T)
    occurs = (torch.arange(len(patches), device=index.device) < B * T).long()
    chunks, posterior, routing = stage.encode(h, patches, occurs, changed)
    said = rows.routing | ({} if routing is None else {"frame": routing})
    return Seen(patches, index, chunks, posterior, said, rows.changed, rows.gate)


def _frames_before(batch: Batch) -> Tensor:
    """Index of the frame before each, `(B, T)`; -1 where a piece begins, or a row."""
    before = torch.cat([torch.full_like(batch.index[:, :1], -1), batch.index[:, :-1]], dim=1)
    return before.masked_fill(batch.start, -1)


def loose_frames(batch: Batch) -> Tensor:
    """Indices of the frames of a batch that no row points to."""
    return (torch.bincount(batch.index.flatten(), minlength=len(batch.frames)) == 0).nonzero().squeeze(1)


def _first_ones(stage: FrameStage, x_nPD: Tensor, patches_nPV: Tensor) -> Changes:
    """What is said of frames each of which is the first of an episode; with an axis of time, of length 1."""
    assert stage.time is not None
    first = torch.ones(len(x_nPD), 1, dtype=torch.bool, device=x_nPD.device)
    with stage.at_rest():
        return stage.time(x_nPD.unsqueeze(1), patches_nPV.unsqueeze(1), first, None)


def see_loose(
    stage: FrameStage, frames: Tensor, key: Tensor | None, uniform_UP: Tensor | None = None
) -> tuple[Tensor, Chunks, Tensor, Routing | None]:
    """Encode frames by themselves, each as the first of an episode.

    Args:
        stage: of the model.
        frames: `(U, *observation shape)`.
        key: says which patches are hidden; None hides none.
        uniform_UP: random numbers for a router that is to try; its statistics are left alone then.

    Returns:
        Patches, chunks, posterior, routing.
    """
    patches = stage.patches(frames)
    h, changed = stage.look(patches, None, key), None
    if stage.time is not None:
        new = _first_ones(stage, h, patches)
        h, changed = new.h.squeeze(1), new.changed.squeeze(1)
    weight = torch.ones(len(frames), device=h.device).long() if uniform_UP is None else None
    chunks, posterior, routing = stage.encode(h, patches, weight, changed, uniform_UP)
    return patches, chunks, posterior, routing


def see_clips(stage: FrameStage, frames: Tensor, key: Tensor) -> Seen:
    """Encode frames as clips, in which each is followed by the next, whatever the two have to do with one another.

    Where patches are followed through time, this is what pictures have to show: what a frame is coded as if some of its
    patches stood still, whichever they are. That no scene moves like this does not matter. Routers that learn what
    moves learn nothing here.

    Args:
        stage: of the model; it follows patches through time.
        frames: `(U, *observation shape)`.
        key: says which patches are hidden.

    Returns:
        One row of all frames.
    """
    assert stage.time is not None
    patches = stage.patches(frames)
    x = stage.look(patches, None, key)
    place = torch.arange(len(frames), device=x.device)
    new = stage.time(x.unsqueeze(0), patches.unsqueeze(0), (place % CLIP == 0).unsqueeze(0), None)
    chunks, posterior, routing = stage.encode(new.h[0], patches, torch.ones_like(place), new.changed[0])
    said = {} if routing is None else {"frame": routing}
    return Seen(patches, place.unsqueeze(0), chunks, posterior, said, new.changed, new.gate)


def check_frames(frame: Tensor, batch: int, spec: ObservationSpec) -> None:
    """Refuse what is no batch of observations: turned or flattened ones have as many values, and are others.

    Raises:
        ValueError: there is not one row, or the frames have another shape or type; the sentence names what is wanted.
    """
    if batch == 0:
        raise ValueError("observe needs at least one row: the state that it was given has none")
    if frame.shape != (batch, *spec.shape) or frame.dtype != TYPES[spec.dtype]:
        raise ValueError(
            f"observe takes frames of shape {(batch, *spec.shape)} and type {spec.dtype}, not of shape "
            f"{tuple(frame.shape)} and type {str(frame.dtype).removeprefix('torch.')}"
        )


def see_step(
    stage: FrameStage, frame: Tensor, action_BA: Tensor, memory: Memory
) -> tuple[Chunks, Tensor, Tensor | None]:
    """Encode one frame of each row.

    Args:
        stage: of the model.
        frame: `(B, *observation shape)`.
        action_BA: action vector that led there.
        memory: entries are replaced; those of rows that begin an episode are fresh.

    Returns:
        The chunks, the posterior `(B, K, parameters)`, and which patches are new, if they are followed through time.
    """
    if stage.past is None and stage.time is None:
        distinct, which = _distinct(frame)
        patches = stage.patches(distinct.to(action_BA.device))
        chunks, posterior, _ = stage.encode(stage.look(patches), patches, None)
        return chunks.rows(which), posterior[which], None
    patches, past, changed = stage.patches(frame.to(action_BA.device)), None, None
    if stage.past is not None:
        past = stage.past(memory["seen.patches"], action_BA, memory["seen.known"])
        memory["seen.patches"], memory["seen.known"] = stage.small(patches), torch.ones_like(memory["seen.known"])
    h = stage.look(patches, past)
    if stage.time is not None:
        new = stage.time.step(h, patches, memory)
        h, changed = new.h, new.changed
    chunks, posterior, _ = stage.encode(h, patches, None, changed)
    return chunks, posterior, changed


def initial_sight(stage: FrameStage, batch: int) -> Memory:
    """What rows remember of frames before the first: nothing."""
    memory: Memory = {}
    new = stage.place.new_zeros
    if stage.past is not None:
        memory["seen.patches"] = new(batch, stage.patches.count, stage.embed.in_features)
        memory["seen.known"] = torch.zeros(batch, dtype=torch.bool, device=stage.place.device)
    if stage.time is not None:
        memory |= stage.time.initial_memory(batch)
        memory["seen.canvas"] = new(batch, stage.patches.count, stage.code.told_width)
    return memory


def look_away(memory: Memory) -> None:
    """A dreamed frame lies between what was seen and what will be: the next true frame is seen as a first one."""
    for name in memory:
        if name == "seen.known" or (name.startswith("time") and name.endswith(".begun")):
            memory[name] = torch.zeros_like(memory[name])


def _distinct(frames: Tensor) -> tuple[Tensor, Tensor]:
    """The frames without repetitions, and which of them each is: environments side by side often look alike.

    On a GPU all of them: to compare them there would take longer than to encode them.
    """
    if frames.is_cuda or len(frames) == 1:
        return frames, torch.arange(len(frames), device=frames.device)
    seen: dict[bytes, int] = {}
    which = [seen.setdefault(frame.tobytes(), len(seen)) for frame in frames.numpy()]
    first = [which.index(i) for i in range(len(seen))]
    return frames[first], torch.tensor(which)
