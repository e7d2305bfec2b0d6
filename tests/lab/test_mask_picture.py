import torch

from cutwork.lab.mask_picture import draw_in_text


def test_a_large_mask_is_drawn_small():
    lines = draw_in_text("a", torch.rand(300, 200) < 0.5).splitlines()
    assert len(lines) == 17
    assert all(len(line) <= 32 for line in lines[1:])
