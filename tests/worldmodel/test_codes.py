"""How a chunk's code is made of its patches and read by them: all of it by all of them, or slot by slot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import STRIDE, random_frames, random_model

from worldmodel.chunks import Chunks
from worldmodel.codes import shared_out
from worldmodel.config import LatentConfig, ModelConfig
from worldmodel.model import WorldModel

PATCHES = 12
SLOTTED = replace(STRIDE, latent=LatentConfig(groups=6, classes=4, slots=3))
NORMAL = replace(STRIDE, latent=LatentConfig(kind="gaussian", groups=6, slots=3))


def members(chunks: Chunks) -> torch.Tensor:
    place = torch.arange(chunks.start.shape[1])
    return (chunks.of_patch.unsqueeze(1) == place[:, None]).float()


def cut(starts: list[int]) -> Chunks:
    start = torch.tensor([starts])
    return Chunks.at(start, torch.ones_like(start, dtype=torch.bool), PATCHES)


@pytest.mark.parametrize("config", [SLOTTED, NORMAL], ids=["categorical", "gaussian"])
@given(st.sets(st.integers(1, PATCHES - 1), max_size=5), st.integers(0, PATCHES - 1))
def test_a_patch_moves_the_slot_that_is_its_own_in_its_own_chunk(
    config: ModelConfig, starts: set[int], moved: int
) -> None:
    model = random_model(config)
    code, chunks = model.frame_stage.code, cut([0, *sorted(starts)])
    h = torch.randn(1, PATCHES, config.frame.width)
    other = h.clone()
    other[:, moved] += 1
    a, b = (code(x, chunks.start, members(chunks)) for x in (h, other))
    assert a.shape == (1, chunks.start.shape[1], model.latent.parameters)
    # One entry for each of mean and deviation, or of the classes, then slots, then what is of a slot.
    differs = (a != b).unflatten(-1, (model.latent.parameters // model.latent.width, 3, -1)).any(-1).any(2)
    wanted = torch.zeros_like(differs)
    wanted[0, chunks.of_patch[0, moved], moved % 3] = True
    assert torch.equal(differs, wanted)


@given(st.sets(st.integers(1, PATCHES - 1), max_size=5), st.integers(0, 5), st.integers(0, 2))
def test_a_patch_reads_its_own_slot_of_its_own_chunk(starts: set[int], chunk: int, slot: int) -> None:
    model = random_model(SLOTTED)
    stage, chunks = model.frame_stage, cut([0, *sorted(starts)])
    K = chunks.start.shape[1]
    latent = torch.randn(1, K, 3, model.latent.width // 3)
    other = latent.clone()
    other[:, min(chunk, K - 1), slot] += 1
    a, b = (stage.code.read(stage.code.tell(x.flatten(-2), None)[:, chunks.of_patch[0]]) for x in (latent, other))
    wanted = (chunks.of_patch[0] == min(chunk, K - 1)) & (torch.arange(PATCHES) % 3 == slot)
    assert torch.equal((a != b).any(-1)[0], wanted)


def test_patches_that_share_a_slot_vote_and_one_alone_decides() -> None:
    model = random_model(SLOTTED)
    code, h = model.frame_stage.code, torch.randn(1, PATCHES, SLOTTED.frame.width)
    alone, whole = cut([0, 3, 6, 9]), cut([0])
    votes = code(h, alone.start, members(alone))
    torch.testing.assert_close(code(h, whole.start, members(whole)), votes.sum(1, keepdim=True) / 4**0.5)


def test_what_was_never_seen_together_is_coded_as_it_was_apart() -> None:
    """Where encoder and painter look at each patch by itself, a frame of two halves has the halves' codes."""
    config = replace(SLOTTED, frame=replace(SLOTTED.frame, encoder_layers="", decoder_layers=""))
    model = random_model(config)
    stage = model.frame_stage
    one, two = stage.patches(random_frames(config, 2, 0)).split(1)
    both = torch.cat([one[:, : PATCHES // 2], two[:, PATCHES // 2 :]], dim=1)
    codes = [stage.encode(stage.look(patches), patches, None)[1] for patches in (one, two, both)]
    torch.testing.assert_close(codes[2][:, :2], codes[0][:, :2])
    torch.testing.assert_close(codes[2][:, 2:], codes[1][:, 2:])


def test_groups_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="7 groups cannot be shared out evenly among 3 slots"):
        WorldModel(replace(STRIDE, latent=LatentConfig(groups=7, slots=3)))


def test_weights_from_before_codes_had_a_module_are_read() -> None:
    model = random_model(replace(STRIDE, frame=replace(STRIDE.frame, paint_past=True)))
    old = {name.replace("frame_stage.code.", "frame_stage."): value for name, value in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    other = random_model(model.config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(old)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3))
def test_slots_are_shared_out_evenly_and_whole(slots: int, modalities: list[tuple[int, int]]) -> None:
    """Each of the patches that a chunk has in the mean gets as many as the others, but for one, and none is left."""
    strides = [min(count, stride) for count, stride in modalities]
    part = torch.arange(len(modalities)).repeat_interleave(torch.tensor([count for count, _ in modalities]))
    own = shared_out(slots, part, strides)
    assert own.shape[:2] == (len(part), slots)
    assert (own.sum(-1) <= 1).all() and (own.sum(1) <= 1).all()  # a slot is of one rank, and a rank is of one slot
    mine = own.sum(-1)
    for modality, stride in enumerate(strides):
        of_it = mine[part == modality]
        for begin in range(len(of_it) - stride + 1):  # any patches of one chunk
            chunk = of_it[begin : begin + stride]
            assert chunk.sum(1).max() - chunk.sum(1).min() <= 1 and (chunk.sum(0) >= 1).all()
            if stride <= slots:
                assert (chunk.sum(0) == 1).all()  # nobody has to share


def test_a_lonely_patch_has_all_of_the_code() -> None:
    config = replace(SLOTTED, frame=replace(SLOTTED.frame, boundary="none"))
    own = random_model(config).frame_stage.code.own
    assert torch.equal(own, torch.eye(3).expand(PATCHES, 3, 3))


@given(st.sets(st.integers(1, PATCHES - 1), max_size=5), st.integers(0, PATCHES - 1))
def test_a_code_of_the_whole_chunk_pools_its_span_and_no_other(starts: set[int], moved: int) -> None:
    model = random_model(STRIDE)
    code, chunks = model.frame_stage.code, cut([0, *sorted(starts)])
    h = torch.randn(1, PATCHES, STRIDE.frame.width)
    other = h.clone()
    other[:, moved] += 1
    a, b = (code(x, chunks.start, members(chunks)) for x in (h, other))
    differs = (a != b).any(-1)[0]
    assert torch.equal(differs, torch.arange(chunks.start.shape[1]) == chunks.of_patch[0, moved])
