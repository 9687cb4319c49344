"""What tokens are made of: a chunk says its code, where it starts and how long the one before it was, not more."""

import torch
from small_models import STRIDE

from worldmodel.tokens import Contents, lengths_before


def contents() -> Contents:
    torch.manual_seed(0)
    made = Contents(STRIDE, patches=12, latent_width=5)
    torch.nn.init.normal_(made.length)
    return made


def test_a_chunk_says_where_it_starts():
    made, latent = contents(), torch.randn(5)
    said = made.chunks(latent.expand(12, 5), torch.arange(12))
    assert len(said.unique(dim=0)) == 12


def test_a_chunk_says_its_code():
    made, latent = contents(), torch.randn(5)
    said = made.chunks(latent + torch.eye(5), torch.zeros(5, dtype=torch.long))
    assert len(said.unique(dim=0)) == 5


def test_a_chunk_is_told_the_length_of_the_one_before_it_and_never_its_own():
    start = torch.tensor([[0, 3, 4, 9], [0, 5, 0, 0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    assert lengths_before(start, valid).tolist() == [[0, 3, 1, 5], [0, 5, 0, 0]]
    made, content = contents(), torch.zeros(13, 16)
    assert len(made.tokens(content, torch.arange(13), None).unique(dim=0)) == 13
