import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.transforms.place import share_out


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 12))
def test_all_shares_are_given_and_evenly_where_they_fit(rows, columns, shares):
    owner = share_out(columns, torch.full((rows,), shares))
    assert owner.shape == (rows, columns)
    assert owner.min() >= 0
    assert owner.max() < shares
    if min(rows, columns) >= shares:
        assert len(owner.unique()) == shares
        assert all(len(line.unique()) == shares for line in (*owner, *owner.T))
