"""An opened attention goes from the same arguments to the same results, but really calls its layers."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.attention import PROJECTIONS, OpenAttention, close_attention, open_attention

pytestmark = pytest.mark.grid

EMBED, HEADS = 24, 4
QUERIES, KEYS, BATCH = 5, 7, 4

OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "keys and values of other widths": {"kdim": 10, "vdim": 14},
    "keys and values of other widths without bias": {"kdim": 10, "vdim": 14, "bias": False, "batch_first": True},
    "a learned key and value": {"add_bias_kv": True},
    "a zero key": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}


def attention_mask(kind: str) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(3)
    shape = (BATCH * HEADS, QUERIES, KEYS) if kind.endswith("3d") else (QUERIES, KEYS)
    if kind.startswith("bool"):
        mask = torch.rand(shape, generator=generator) < 0.3
        mask[..., 0] = False
        return mask
    return torch.randn(shape, generator=generator) if kind.startswith("float") else None


def padding_mask(kind: str) -> torch.Tensor | None:
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[1, 4:] = padding[3, 6:] = True
    if kind == "bool":
        return padding
    return torch.zeros(BATCH, KEYS).masked_fill(padding, -torch.inf) if kind == "float" else None


def pair(**options) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """Return a closed attention with random numbers everywhere, and its opened twin."""
    torch.manual_seed(0)
    closed = nn.MultiheadAttention(EMBED, HEADS, **options)
    for parameter in closed.parameters():
        nn.init.normal_(parameter, std=0.3)
    opened = copy.deepcopy(closed)
    open_attention(opened)
    return closed, opened


def inputs_for(attention: nn.MultiheadAttention) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(QUERIES, BATCH, EMBED), (KEYS, BATCH, attention.kdim), (KEYS, BATCH, attention.vdim)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return [tensor.transpose(0, 1).contiguous() if attention.batch_first else tensor for tensor in tensors]


def gradients_of(attention: nn.MultiheadAttention) -> dict[str, torch.Tensor]:
    """Return the gradients of an attention under the names that they have in the closed form."""
    found = {name: parameter.grad for name, parameter in attention.named_parameters()}
    if isinstance(attention, OpenAttention):
        weights, biases = (
            [found.pop(f"{name}.{kind}", None) for name in PROJECTIONS[:3]] for kind in ("weight", "bias")
        )
        if attention._qkv_same_embed_dim:
            found["in_proj_weight"] = torch.cat(weights)
        else:
            found |= {f"{name}_weight": weight for name, weight in zip(PROJECTIONS[:3], weights, strict=True)}
        if biases[0] is not None:
            found["in_proj_bias"] = torch.cat(biases)
    return found


def check_equal(closed: nn.MultiheadAttention, opened: nn.MultiheadAttention, inputs, **arguments) -> None:
    results = []
    for attention in (closed, opened):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        attention.zero_grad()
        out, weights = attention(*leaves, **arguments)
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
        if weights is not None:
            loss = loss + (weights * torch.linspace(-1, 1, weights.numel()).view_as(weights)).sum()
        loss.backward()
        results.append([out, weights, [leaf.grad for leaf in leaves], gradients_of(attention)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("need_weights", "average"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("options", OPTIONS)
def test_forward_and_gradients_are_those_of_the_closed_form(options, need_weights, average):
    closed, opened = pair(**OPTIONS[options])
    kinds = itertools.product(("none", "bool 2d", "bool 3d", "float 2d", "float 3d"), ("none", "bool", "float"))
    for mask, padding in kinds:
        if "bool" in (mask[:4], padding) and "float" in (mask[:5], padding):
            # PyTorch deprecates a mask and a padding of different types.
            continue
        check_equal(
            closed, opened, inputs_for(closed), need_weights=need_weights, average_attn_weights=average,
            attn_mask=attention_mask(mask), key_padding_mask=padding_mask(padding),
        )  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
def test_projections_are_given_rows_in_the_order_in_which_they_lie(batch_first):
    # Of others every product makes a copy, forward and backward.
    attention = pair(batch_first=batch_first)[1]
    seen = []
    for name in PROJECTIONS:
        attention.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    query, key, value = inputs_for(attention)
    attention(query, key, value, need_weights=False)
    assert len(seen) == 4
    assert all(each.is_contiguous() for each in seen)
    assert [each.data_ptr() for each in seen[:3]] == [each.data_ptr() for each in (query, key, value)]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_input_without_a_batch_gives_output_without_one(batch_first, need_weights):
    closed, opened = pair(batch_first=batch_first)
    inputs = [torch.randn(length, EMBED) for length in (QUERIES, KEYS, KEYS)]
    for mask in (None, torch.randn(QUERIES, KEYS), torch.randn(HEADS, QUERIES, KEYS)):
        check_equal(closed, opened, inputs, attn_mask=mask, need_weights=need_weights)
    check_equal(closed, opened, inputs, key_padding_mask=padding_mask("bool")[1], need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", ["none", "float"])
def test_is_causal_is_a_hint_about_the_mask(padding, need_weights):
    closed, opened = pair(batch_first=True)
    x = torch.randn(BATCH, KEYS, EMBED)
    causal = nn.Transformer.generate_square_subsequent_mask(KEYS)
    check_equal(
        closed, opened, (x, x, x), attn_mask=causal, is_causal=True, need_weights=need_weights,
        key_padding_mask=padding_mask(padding),
    )  # fmt: skip
    for attention in (closed, opened):
        with pytest.raises((RuntimeError, ValueError), match="attn_mask"):
            attention(x, x, x, is_causal=True, need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_drops_as_much_in_training_and_nothing_in_evaluation(need_weights):
    closed, opened = pair(dropout=0.4)
    inputs = inputs_for(closed)
    means = []
    for attention in (closed, opened):
        with torch.no_grad():
            samples = torch.stack([attention(*inputs, need_weights=need_weights)[0] for _ in range(800)])
        means.append((samples.mean(0), samples.std(0)))
    torch.testing.assert_close(*(mean for mean, _ in means), rtol=0, atol=0.4)
    spreads = [spread.mean() for _, spread in means]
    torch.testing.assert_close(*spreads, rtol=0.05, atol=0)
    if need_weights:
        # What is returned has been dropped out as well.
        assert (opened(*inputs, average_attn_weights=False)[1] == 0).float().mean() == pytest.approx(0.4, abs=0.1)
    check_equal(closed.eval(), opened.eval(), inputs, need_weights=need_weights)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_state_dict_of_the_closed_form_loads_strictly(options):
    closed, opened = pair(**OPTIONS[options])
    state = {name: torch.randn_like(value) for name, value in closed.state_dict().items()}
    before = dict(state)
    closed.load_state_dict(state, strict=True)
    opened.load_state_dict(state, strict=True)
    assert state.keys() == before.keys()
    check_equal(closed, opened, inputs_for(closed))
    opened.load_state_dict(opened.state_dict(), strict=True)


@pytest.mark.parametrize("options", OPTIONS)
def test_closing_restores_all_there_was(options):
    closed, opened = pair(**OPTIONS[options])
    closed.in_proj_bias = None if closed.in_proj_bias is None else closed.in_proj_bias.requires_grad_(False)
    opened = copy.deepcopy(closed)
    open_attention(opened)
    close_attention(opened)
    assert type(opened) is nn.MultiheadAttention
    assert type(opened.out_proj) is type(closed.out_proj)
    assert not opened._load_state_dict_pre_hooks
    assert [*opened.state_dict()] == [*closed.state_dict()]
    assert repr(opened) == repr(closed)
    for (name, parameter), twin in zip(opened.named_parameters(), closed.parameters(), strict=True):
        assert torch.equal(parameter, twin), name
        assert parameter.requires_grad == twin.requires_grad, name
    inputs = inputs_for(closed)
    assert torch.equal(opened(*inputs)[0], closed(*inputs)[0])


def test_copies_and_pickles_still_load_the_closed_form():
    closed, opened = pair()
    for twin in (copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        twin.load_state_dict(closed.state_dict(), strict=True)
        check_equal(closed, twin, inputs_for(closed))


@pytest.mark.parametrize("part", PROJECTIONS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_a_mask_on_any_projection_counts(part, need_weights):
    closed, _ = pair()
    sparsifier = cw.sparsify(closed, {part: "block:4"}, density=0.25)
    twin = nn.MultiheadAttention(EMBED, HEADS)
    cw.bake(copied := copy.deepcopy(closed))
    twin.load_state_dict(copied.state_dict())
    inputs = inputs_for(closed)
    torch.testing.assert_close(closed(*inputs, need_weights=need_weights), twin(*inputs, need_weights=need_weights))
    layer = sparsifier.layers[part]
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    out = closed(*inputs, need_weights=need_weights)[0]
    with torch.no_grad():
        layer.weight[~layer.sparsity.mask] = 100.0
    assert torch.equal(closed(*inputs, need_weights=need_weights)[0], out)


def test_it_works_under_autocast():
    closed, opened = pair(batch_first=True)
    x = torch.randn(BATCH, KEYS, EMBED)
    for need_weights, mask in itertools.product((True, False), (None, torch.randn(KEYS, KEYS))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = opened(x, x, x, need_weights=need_weights, attn_mask=mask)[0]
        expected = closed(x, x, x, need_weights=need_weights, attn_mask=mask)[0]
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def encoder(num_layers: int = 3, **options) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 32, batch_first=True, dropout=0.1, **options)
    made = nn.TransformerEncoder(layer, num_layers)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval()


# The twin without masks takes the fused path, which warns of what it is made of.
NESTED = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
WHERE = {
    "one feed-forward layer": "layers.1.linear1",
    "the attention of one layer": "layers.1.self_attn.*",
    "everything": "*",
    "everything but the first layer": "layers.[12].*",
}


@NESTED
@pytest.mark.parametrize("padding", ["none", "bool"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("method", ["static", "supermask", "srste"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_no_fused_path_goes_past_the_masks(activation, method, where, padding):
    """In evaluation PyTorch hands the bare weights of a transformer layer to one fused function, or packs its input."""
    model = encoder(activation=activation)
    cw.sparsify(model, {WHERE[where]: "block:4"}, density=0.25, method=method)
    twin = encoder(activation=activation)
    cw.bake(baked := copy.deepcopy(model))
    twin.load_state_dict(baked.state_dict())
    x, mask = torch.randn(BATCH, KEYS, EMBED), padding_mask(padding)
    with torch.no_grad():
        out, expected = (one(x, src_key_padding_mask=mask) for one in (model, twin))
    kept = ~mask if mask is not None else torch.ones(BATCH, KEYS, dtype=torch.bool)
    torch.testing.assert_close(out[:, : expected.shape[1]][kept], expected[kept], rtol=1e-4, atol=1e-5)


def test_baking_gives_the_fused_path_back():
    model = encoder()
    attributes = [dict(vars(module)) for module in (model, *model.layers)]
    cw.sparsify(model, "block:4", density=0.25)
    assert not model.use_nested_tensor
    cw.bake(model)
    assert model.use_nested_tensor
    assert [vars(module).keys() for module in (model, *model.layers)] == [before.keys() for before in attributes]
    assert [layer.activation_relu_or_gelu for layer in model.layers] == [1, 1, 1]


def test_a_transformer_without_sparse_layers_keeps_its_fused_path():
    model = nn.ModuleList([encoder(), encoder()])
    cw.sparsify(model, {"0.*": "block:4"}, density=0.25)
    assert [part.use_nested_tensor for part in model] == [False, True]
    assert [part.layers[0].activation_relu_or_gelu for part in model] == [0, 1]


@NESTED
def test_an_encoder_that_packs_its_input_for_a_sparse_attention_is_told_not_to():
    """A layer made sparse on its own cannot reach the encoder around it."""
    model = encoder()
    cw.sparsify(model.layers[2], {"self_attn.*": "block:4"}, density=0.25)
    with torch.no_grad(), pytest.raises(ValueError, match="enable_nested_tensor=False"):
        model(torch.randn(BATCH, KEYS, EMBED), src_key_padding_mask=padding_mask("bool"))


def test_a_decoder_attends_to_its_memory_through_sparse_projections():
    torch.manual_seed(0)
    model = nn.TransformerDecoderLayer(EMBED, HEADS, 32, batch_first=True, dropout=0.0)
    cw.sparsify(model, "block:4", density=0.25, method="supermask")
    twin = nn.TransformerDecoderLayer(EMBED, HEADS, 32, batch_first=True, dropout=0.0)
    cw.bake(baked := copy.deepcopy(model))
    twin.load_state_dict(baked.state_dict())
    x, memory = torch.randn(BATCH, QUERIES, EMBED), torch.randn(BATCH, KEYS, EMBED)
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES)
    out, expected = (one(x, memory, tgt_mask=causal, tgt_is_causal=True) for one in (model, twin))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
