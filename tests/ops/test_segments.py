"""Document boundaries: where a state is cleared, and where it is kept."""

import torch

from hybridize.ops.segments import find_starts, has_gaps


def test_only_later_documents_start() -> None:
    segments_BT = torch.tensor([[1, 1, 2, 2, 0], [0, 3, 3, 1, 1]])
    wanted_BT = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    assert torch.equal(find_starts(segments_BT), wanted_BT)


def test_padding_between_tokens_does_not_start_a_document() -> None:
    segments_BT = torch.tensor([[1, 0, 0, 1, 0, 2]])
    assert find_starts(segments_BT).tolist() == [[False, False, False, False, False, True]]


def test_only_trailing_padding_is_no_gap() -> None:
    assert not has_gaps(torch.tensor([[1, 1, 2, 0, 0]]))
    assert has_gaps(torch.tensor([[0, 1, 1]]))
    assert has_gaps(torch.tensor([[1, 0, 1]]))
