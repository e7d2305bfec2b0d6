import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.transforms import Change


def make_mlp(width):
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def fit_mlp(x=None, **options):
    return cw.transforms.fit(
        make_mlp(128), make_mlp(256), torch.rand(2, 20) if x is None else x, sparse={"2"}, **options
    )


def test_one_line_makes_a_larger_model_as_sparse_as_its_budget_asks():
    larger, x = fit_mlp(), torch.rand(2, 20)
    # 2 * (20 * 128 + 128 * 128 + 128 * 10) = 2 * (20 * 256 + density * 256 * 256 + 256 * 10) for each of two inputs.
    assert larger.densities == {"2": pytest.approx((128 * 128 - 30 * 128) / 256**2)}
    sparsifier = cw.sparsify(
        larger.model,
        larger.patterns("block:16"),
        density=larger.densities,
        method=cw.RigL(every=2),
        steps=10,
        storage="compressed",
    )
    assert list(sparsifier.layers) == ["2"]
    cost = cw.flops(larger.model, x)
    assert cost.sparse == pytest.approx(larger.flops_before, rel=0.02)
    assert larger.flops_before == cw.flops(make_mlp(128), x).dense


def test_with_a_pattern_densities_keep_whole_units():
    larger = fit_mlp(pattern="block:4")
    sparsifier = cw.sparsify(larger.model, larger.patterns("block:4"), density=larger.densities)
    units = larger.densities["2"] * 64 * 64
    assert units == round(units)
    assert sparsifier.layers["2"].sparsity.density == larger.densities["2"]
    assert cw.flops(larger.model, torch.rand(2, 20)).sparse == larger.flops_after


def test_tiles_that_are_too_coarse_for_the_budget_are_refused():
    with pytest.raises(ValueError, match=r"off the .* of the dense one; smaller tiles come closer"):
        fit_mlp(pattern="block:64")


@pytest.mark.parametrize(("pattern", "density"), [("2:4", 0.5), ("1:4", 0.25)])
@pytest.mark.parametrize("member", ["parallel", "factorized", "doped"])
def test_a_pattern_that_fixes_the_density_which_a_member_has_is_taken(member, pattern, density):
    model, x = make_mlp(64), torch.rand(1, 20)
    larger = getattr(cw.transforms, member)(model, density, inputs=x, pattern=pattern)
    assert {*larger.densities.values()} == {density}
    cw.sparsify(larger.model, larger.patterns(pattern), density=larger.densities)
    assert cw.flops(larger.model, x).sparse == larger.flops_before


def test_a_pattern_that_fixes_another_density_than_the_budget_asks_for_is_refused():
    with pytest.raises(
        ValueError, match=r"dense one; 2:4 fixes the density of each layer at 0.5, and here 0.1914 would"
    ):
        fit_mlp(pattern="2:4")


def test_a_layer_that_a_pattern_cannot_tile_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^2: 2:5 cannot tile 256 inputs; it needs a multiple of 5; use another"):
        fit_mlp(pattern="2:5")


def test_it_prints_as_a_table():
    assert str(fit_mlp()).splitlines() == [
        "layer  old shape  new shape  density  FLOPs before  FLOPs after",
        "0      128x20     256x20       dense        10,240       20,480",
        "2      128x128    256x256     0.1914        65,536       50,176",
        "4      10x128     10x256       dense         5,120       10,240",
        "total                                       80,896       80,896",
    ]


class Attending(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.stem, self.attention = nn.Linear(32, width), nn.MultiheadAttention(width, num_heads, batch_first=True)

    def forward(self, x):
        x = self.stem(x)
        return self.attention(x, x, x)[0]


def test_projections_of_an_attention_are_named_as_sparsify_names_them():
    x, names = torch.rand(1, 4, 32), [f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    larger = cw.transforms.fit(Attending(32, 2), Attending(64, 4), x, sparse=names, pattern="unstructured")
    assert list(larger.densities) == names
    assert type(larger.model.attention) is nn.MultiheadAttention
    cw.sparsify(larger.model, larger.patterns("unstructured"), density=larger.densities)
    assert cw.flops(larger.model, x).sparse == pytest.approx(larger.flops_before, rel=1e-3)


def test_layers_that_came_of_one_count_what_it_needed_once():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.a(x) + self.b(x)

    larger = cw.transforms.fit(
        nn.Sequential(nn.Linear(64, 64)), Parallel(), torch.rand(1, 64), sparse={"a", "b"}, origins={"a": "0", "b": "0"}
    )
    assert larger.densities == {"a": 0.5, "b": 0.5}
    assert [change.flops_before for change in larger.changes] == [8192, 0]
    assert [change.old_shape for change in larger.changes] == [(64, 64), (64, 64)]


def test_layers_that_are_gone_still_count_before():
    old = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    larger = cw.transforms.fit(old, nn.Sequential(nn.Linear(64, 256)), torch.rand(1, 64), sparse={"0"})
    assert larger.densities == {"0": 0.5}
    assert larger.changes[-1] == Change("1", (64, 64), (), None, flops_before=8192, flops_after=0)


def test_a_layer_that_computes_nothing_cannot_pay():
    with pytest.raises(ValueError, match="1 is to be sparse, but computes nothing"):
        cw.transforms.fit(make_mlp(8), make_mlp(8), torch.rand(2, 20), sparse={"1"})
