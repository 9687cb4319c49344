"""A frame's random numbers: whose they are, and that a choice made with one of them has the right frequency."""

import torch

from worldmodel.draws import frame_draws, pick


def test_a_row_draws_alone_and_more_chunks_change_nothing_before_them():
    key, step = torch.arange(6) << 32, torch.arange(6)
    together = frame_draws(key, step, 4, 3)
    longer = frame_draws(key, step, 7, 3)
    for i in range(6):
        alone = frame_draws(key[i : i + 1], step[i : i + 1], 4, 3)
        for name, value in vars(together).items():
            assert torch.equal(getattr(alone, name)[0], value[i]), name
    assert torch.equal(longer.latent[:, :4], together.latent)
    assert torch.equal(longer.start[:, :4], together.start)
    assert torch.equal(longer.event, together.event)
    everything = torch.cat([value.flatten() for value in vars(together).values()])
    assert len(everything.unique()) == len(everything) == 6 * (2 + 4 * 4)


def test_whole_rows_draw_what_single_steps_draw():
    key = torch.tensor([5, 1 << 40])
    whole = frame_draws(key[:, None], torch.arange(3), 2, 4)
    for t in range(3):
        assert torch.equal(whole.latent[:, t], frame_draws(key, torch.full((2,), t), 2, 4).latent)


def test_picks_have_the_right_frequency_and_never_take_the_impossible():
    logits = torch.tensor([-torch.inf, 1.0, 0.0, -torch.inf, 2.0, -torch.inf])
    u = (torch.arange(20000) + 0.5) / 20000
    picked = pick(logits.expand(20000, -1), u).bincount(minlength=6) / 20000
    torch.testing.assert_close(picked, logits.softmax(-1), rtol=0, atol=1e-4)
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])  # the smallest and the largest that noise.uniform gives
    assert pick(logits.expand(2, -1), ends).tolist() == [1, 4]
