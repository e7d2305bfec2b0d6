import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.costs.pictures import CELLS, coarsen, draw_in_text


def test_pictures_are_png_and_svg(tmp_path, monkeypatch):
    # Another test may have loaded it.
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    network = nn.Sequential(
        nn.Linear(64, 32), nn.Conv2d(8, 8, 3), nn.Linear(600, 300), nn.Linear(8, 8), nn.Linear(8, 8)
    )
    cw.sparsify(network, "unstructured", density=0.25)
    chance = torch.get_rng_state()
    for name, beginning in (("masks.png", b"\x89PNG"), ("masks.svg", b"<?xml")):
        cw.draw_masks(network, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(beginning)
    assert torch.equal(torch.get_rng_state(), chance)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_picture_shows_title_size_and_mask_of_each_layer(monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi, bbox_inches: figures.append(figure))
    network = nn.Sequential(nn.Linear(6, 4))
    cw.sparsify(network, "unstructured", density=0.25)
    cw.draw_masks(network, "unused.png")
    panel = figures[0].axes[0]
    assert panel.get_title() == "0\nunstructured, density 0.25"
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("inputs", "outputs")
    assert np.array_equal(panel.images[0].get_array(), network[0].sparsity.mask.numpy())
    assert panel.images[0].get_clim() == (0, 1)
    assert panel.images[0].get_extent() == [0, 6, 4, 0]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (256, 257), (300, 2000), (1000, 64)])
def test_a_coarse_mask_holds_true_means(shape):
    mask = np.random.default_rng(0).random(shape) < 0.3
    coarse = coarsen(mask)
    assert coarse.shape == tuple(min(size, CELLS) for size in shape)
    rows, columns = (
        np.linspace(0, size, cells + 1).astype(int) for size, cells in zip(shape, coarse.shape, strict=True)
    )
    expected = [
        [mask[top:bottom, left:right].mean() for left, right in pairwise(columns)] for top, bottom in pairwise(rows)
    ]
    assert np.allclose(coarse, expected)


def test_a_model_without_masks_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"^the model has no sparse layer; sparsify"):
        cw.draw_masks(nn.Linear(4, 4), tmp_path / "masks.png")


def test_a_missing_matplotlib_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    cw.sparsify(network := nn.Sequential(nn.Linear(4, 4)), "unstructured", density=0.25)
    with pytest.raises(
        ImportError, match=r"draw_masks needs matplotlib; install it with pip install 'cutwork\[report\]'"
    ):
        cw.draw_masks(network, tmp_path / "masks.png")


def test_a_large_mask_is_drawn_small():
    lines = draw_in_text("a", torch.rand(300, 200) < 0.5).splitlines()
    assert len(lines) == 17
    assert all(len(line) <= 32 for line in lines[1:])
