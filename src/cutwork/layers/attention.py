"""`nn.MultiheadAttention` with its projections as layers of their own.

The original keeps the projections of query, key and value in one parameter and hands the weight of the output
projection to a function without ever calling the layer, so a mask in a layer there would do nothing.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cutwork.layers.composite import Composite
from cutwork.layers.sparse import Sparse

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
# The attribute that opens the fused path of a class, and the one that keeps its value while that path is closed.
FUSED_SWITCHES = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
SWITCH_BEFORE = "_switch_before"


@final
class OpenAttention(nn.MultiheadAttention):
    """The same attention, from the same arguments to the same results, through four layers that can be sparse.

    It loads a state dict of the original. Build one with `open_attention`.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `nn.MultiheadAttention` does."""
        if query.is_nested:
            raise ValueError(
                "sparse attention takes no nested tensor; build the encoder with enable_nested_tensor=False"
            )
        batched = query.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, as in nn.MultiheadAttention; pass attn_mask too")
        if not batched:
            query, key, value = (tensor.unsqueeze(batch_dim) for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        bias = self._make_bias(query.shape[batch_dim], query.dtype, key_padding_mask, attn_mask)
        out, weights = self._attend(query, key, value, bias, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(batch_dim), None if weights is None else weights.squeeze(0)
        return out, weights

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        q = self._split_heads(self.q_proj(query))
        k = self._split_heads(self._append_extra(self.k_proj(key), self.bias_k))
        v = self._split_heads(self._append_extra(self.v_proj(value), self.bias_v))
        if self.add_zero_attn:
            k, v = (F.pad(tensor, (0, 0, 0, 1)) for tensor in (k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout((logits if bias is None else logits + bias).softmax(dim=-1), dropout)
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        back = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        return self.out_proj(heads.permute(back).flatten(2)), weights

    def _split_heads(self, tensor: Tensor) -> Tensor:
        """Return `[batch, heads, places, head]`, a view: rows stay in their order, which products would copy else."""
        heads = tensor.unflatten(-1, (self.num_heads, self.head_dim))
        return heads.permute(0, 2, 1, 3) if self.batch_first else heads.permute(1, 2, 0, 3)

    def _append_extra(self, tensor: Tensor, extra: Tensor | None) -> Tensor:
        if extra is None:
            return tensor
        if self.batch_first:
            return torch.cat([tensor, extra.expand(tensor.shape[0], 1, -1)], dim=1)
        return torch.cat([tensor, extra.expand(1, tensor.shape[1], -1)])

    def _make_bias(
        self, batch: int, dtype: torch.dtype, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> Tensor | None:
        """Return what is added to the logits, shaped to broadcast to [batch, heads, queries, keys]."""
        bias = None if attn_mask is None else _to_bias(attn_mask, dtype)
        if bias is not None and bias.dim() == 3:
            bias = bias.view(batch, self.num_heads, *bias.shape[1:])
        if key_padding_mask is not None:
            padding = _to_bias(key_padding_mask, dtype)[:, None, None]
            bias = padding if bias is None else bias + padding
        extra = (self.bias_k is not None) + self.add_zero_attn
        return bias if bias is None or not extra else F.pad(bias, (0, extra))


def open_attention(attention: nn.MultiheadAttention) -> None:
    """Give each projection of an attention a layer of its own, in place; the numbers stay what they are."""
    for name, (weight, bias) in projections(attention).items():
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        projection.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        if bias is not None:
            projection.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        setattr(attention, name, projection.train(attention.training))
    attention.out_proj.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]
    # Last, as among the candidates: the order of the layers must not depend on whether the attention was open before.
    attention._modules["out_proj"] = attention._modules.pop("out_proj")
    for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        attention.register_parameter(name, None)
    attention.register_load_state_dict_pre_hook(_load_closed)
    attention.__class__ = OpenAttention


def close_attention(attention: nn.Module) -> None:
    """Undo `open_attention`, once its projections are dense layers again."""
    parts = [attention.get_submodule(name) for name in PROJECTIONS[:3]]
    weights: list[Any] = [part.weight for part in parts]
    if attention._qkv_same_embed_dim:
        attention.in_proj_weight = _join(weights)
    else:
        attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight = weights
    if parts[0].bias is not None:
        attention.in_proj_bias = _join([part.bias for part in parts])
    for name in PROJECTIONS[:3]:
        delattr(attention, name)
    attention.out_proj.__class__ = NonDynamicallyQuantizableLinear  # pyrefly: ignore[bad-argument-type]
    for key, hook in list(attention._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", hook) is _load_closed:
            del attention._load_state_dict_pre_hooks[key]
    attention.__class__ = nn.MultiheadAttention


def disable_fused_paths(model: nn.Module) -> None:
    """Make transformer layers call what is not dense in them: their fused path reads bare weights instead.

    The encoder around them must not pack its input for that path either.
    """
    for module in model.modules():
        switch = _find_switch(module)
        if switch and SWITCH_BEFORE not in vars(module) and _must_call_its_layers(module):
            setattr(module, SWITCH_BEFORE, getattr(module, switch))
            setattr(module, switch, 0)


def enable_fused_paths(model: nn.Module) -> None:
    """Undo `disable_fused_paths` in all that holds no sparse layer and no composite any more."""
    for module in model.modules():
        switch = _find_switch(module)
        if switch and SWITCH_BEFORE in vars(module) and not _must_call_its_layers(module):
            setattr(module, switch, getattr(module, SWITCH_BEFORE))
            delattr(module, SWITCH_BEFORE)


def projections(attention: nn.MultiheadAttention) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the projections of query, key and value of a closed attention."""
    biases: Any = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    if attention.in_proj_weight is not None:
        weights: Any = attention.in_proj_weight.chunk(3)
    else:
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    return dict(zip(PROJECTIONS, zip(weights, biases, strict=True), strict=False))


def _find_switch(module: nn.Module) -> str | None:
    return next((switch for kind, switch in FUSED_SWITCHES.items() if isinstance(module, kind)), None)


def _must_call_its_layers(module: nn.Module) -> bool:
    return any(isinstance(part, Sparse | Composite) for part in module.modules())


def _join(parts: list[Any]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=parts[0].requires_grad)


def _to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


def _load_closed(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
    """Turn the keys of the original into those of the open form while a state dict is loaded."""
    for old, new in (("in_proj_weight", "weight"), ("in_proj_bias", "bias")):
        if (packed := state.pop(f"{prefix}{old}", None)) is not None:
            for name, part in zip(PROJECTIONS, packed.chunk(3), strict=False):
                state[f"{prefix}{name}.{new}"] = part
    for name in PROJECTIONS[:3]:
        if (weight := state.pop(f"{prefix}{name}_weight", None)) is not None:
            state[f"{prefix}{name}.weight"] = weight
