import json
import math

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.costs import ramanujan
from cutwork.costs.ramanujan import measure_gaps


def biregular(outputs, inputs, degree, seed=0):
    """Return a random graph in which each output has `degree` inputs and all inputs have equally many outputs."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(outputs, inputs, dtype=torch.bool)
    for _ in range(degree):
        while True:
            order = torch.cat([torch.randperm(inputs, generator=generator) for _ in range(outputs // inputs)])
            if not mask[torch.arange(outputs), order].any():
                break
        mask[torch.arange(outputs), order] = True
    return mask


def by_eigenvalues(mask):
    """Return the gap by the eigenvalues of the adjacency matrix of all nodes, as it is defined."""
    adjacency = torch.zeros(sum(mask.shape), sum(mask.shape), dtype=torch.float64)
    adjacency[: len(mask), len(mask) :] = mask.double()
    adjacency += adjacency.T.clone()
    # Of a bipartite graph each eigenvalue has a negative twin: the third by size is the second of its kind.
    third = torch.linalg.eigvalsh(adjacency).abs().sort(descending=True).values[2]
    return math.sqrt(float(mask.sum()) / mask.shape[0] - 1) + math.sqrt(float(mask.sum()) / mask.shape[1] - 1) - third


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 10), (16, 16), (200, 300)])
def test_of_a_complete_graph_only_the_first_singular_value_is_not_zero(outputs, inputs):
    gaps = measure_gaps(torch.ones(outputs, inputs, dtype=torch.bool))
    bound = math.sqrt(inputs - 1) + math.sqrt(outputs - 1)
    assert gaps.gap == gaps.mean_gap == pytest.approx(bound)
    assert gaps.weighted_gap == gaps.mean_weighted_gap == pytest.approx(math.sqrt(outputs * inputs))
    assert (gaps.num_inputs, gaps.num_outputs, gaps.num_subgraphs) == (inputs, outputs, 1)
    assert (gaps.input_degree, gaps.output_degree) == (outputs, inputs)


def test_two_separate_complete_graphs_have_the_first_singular_value_twice():
    for size in (4, 100):
        gaps = measure_gaps(torch.block_diag(torch.ones(size, size), torch.ones(size, size)).bool())
        assert gaps.gap == pytest.approx(2 * math.sqrt(size - 1) - size)
        assert gaps.weighted_gap == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("outputs", "inputs", "degree"), [(20, 20, 4), (60, 20, 3), (400, 200, 4)])
def test_the_gap_of_a_biregular_graph_is_that_of_its_adjacency_matrix(outputs, inputs, degree):
    mask = biregular(outputs, inputs, degree)
    gaps = measure_gaps(mask)
    assert gaps.gap == pytest.approx(float(by_eigenvalues(mask)), abs=1e-6)
    # All inputs have one degree, so the whole is the only subgraph.
    assert (gaps.mean_gap, gaps.num_subgraphs) == (pytest.approx(gaps.gap), 1)
    assert (gaps.input_degree, gaps.output_degree) == (degree * outputs / inputs, degree)
    # The largest singular value of such a graph is the root of the product of its degrees.
    root = math.sqrt(gaps.input_degree * degree)
    second = math.sqrt(gaps.input_degree - 1) + math.sqrt(degree - 1) - gaps.gap
    assert gaps.weighted_gap == pytest.approx(root - second, abs=1e-6)


def test_random_regular_graphs_are_nearly_ramanujan_and_blocks_far_from_it():
    mask = biregular(256, 256, 8)
    assert abs(measure_gaps(mask).gap) < 0.5
    blocks = torch.block_diag(*[torch.ones(8, 8)] * 32).bool()
    assert measure_gaps(blocks).gap == pytest.approx(2 * math.sqrt(7) - 8)


def test_subgraphs_are_the_inputs_of_one_degree_with_all_their_connections():
    torch.manual_seed(0)
    mask = torch.zeros(12, 30, dtype=torch.bool)
    for column in range(30):
        mask[torch.randperm(12)[: (4, 6, 9)[column % 3]], column] = True
    # Two inputs are too few, and what is not connected does not count.
    mask[:, 28] = mask[:, 29] = False
    mask[:5, 28] = mask[:5, 27] = True
    mask[5:, 27] = False
    weight = torch.randn(12, 30)
    gaps = measure_gaps(mask, weight)
    expected, weighted = [], []
    for degree in (4, 6, 9):
        part = mask[:, mask.sum(0) == degree]
        assert part.any(1).all()
        expected.append(float(by_eigenvalues(part)))
        values = torch.linalg.svdvals((weight.double().abs() * mask)[:, mask.sum(0) == degree])
        weighted.append(float(values[0] - values[1]))
    assert gaps.num_subgraphs == 3
    assert gaps.mean_gap == pytest.approx(sum(expected) / 3)
    assert gaps.mean_weighted_gap == pytest.approx(sum(weighted) / 3)
    assert gaps.num_inputs == 29
    values = torch.linalg.svdvals(weight.double().abs() * mask)
    assert gaps.weighted_gap == pytest.approx(float(values[0] - values[1]))


def test_too_few_connections_have_no_gap():
    for mask in (torch.zeros(8, 8, dtype=torch.bool), torch.eye(8, dtype=torch.bool)):
        gaps = measure_gaps(mask)
        assert (gaps.gap, gaps.mean_gap, gaps.weighted_gap, gaps.mean_weighted_gap) == (None,) * 4
        assert gaps.num_inputs == int(mask.sum())


@pytest.mark.parametrize("shape", [(300, 500), (500, 300)])
@pytest.mark.parametrize("weighted", [True, False])
def test_iterations_find_what_all_singular_values_say(shape, weighted, monkeypatch):
    torch.manual_seed(0)
    mask = torch.rand(shape) < 0.1
    weight = torch.randn(shape) if weighted else None
    quick = measure_gaps(mask, weight)
    monkeypatch.setattr(ramanujan, "EXACT_SIZE", 1000)
    exact = measure_gaps(mask, weight)
    for name in ("gap", "mean_gap", "weighted_gap", "mean_weighted_gap"):
        assert getattr(quick, name) == pytest.approx(getattr(exact, name), abs=1e-6), name


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_a_model_has_a_table_of_them_and_is_left_alone(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Flatten(), nn.Linear(64, 32))
    cw.sparsify(model, {"0": "block:4", "2": "vector:2"}, density={"0": 0.5, "2": 0.05}, storage=storage)
    chance, version = torch.get_rng_state(), model[0].trained._version
    gaps = cw.ramanujan_gaps(model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert model[0].trained._version == version
    assert list(gaps.layers) == ["0", "2"]
    assert gaps.layers["0"] == measure_gaps(model[0].sparsity.mask_matrix(), model[0].sparsity.matrix(model[0].trained))
    head, first, second = str(gaps).splitlines()
    assert " ".join(head.split()) == "layer graph degrees gap mean gap weighted gap mean weighted gap"
    assert first.startswith("0")
    assert second.split()[-4:] == ["-"] * 4
    assert json.loads(gaps.to_json())["layers"]["0"]["gap"] == gaps.layers["0"].gap


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match=r"a mask is a bool matrix \[out, in\]; got torch.float32 of shape \[2, 2\]"):
        measure_gaps(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"shaped like their mask, \[2, 2\]; got \[2, 3\]"):
        measure_gaps(torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3))
    with pytest.raises(ValueError, match="the model has no sparse layer"):
        cw.ramanujan_gaps(nn.Sequential(nn.Linear(4, 4)))
