"""Layers in dense storage, in files: a mask beside a weight of full shape."""

from typing import Any, final

import torch
from torch import nn

from cutwork.files.record import DENSE, KINDS, LayerRecord, options_of, write_pattern
from cutwork.files.storage import Needed, State, Storage, need_energies, take_own, take_shared_weight, under
from cutwork.layers.swap import SparseLayer, make_sparse
from cutwork.patterns import parse
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.learned import Learned
from cutwork.sparsity.masked import Masked
from cutwork.sparsity.softened import count_contests


@final
class DenseStorage(Storage):
    """A mask of any kind, as bits."""

    def holds(self, layer: nn.Module) -> bool:
        """Say whether a layer has a mask beside its weight."""
        return isinstance(layer, SparseLayer) and isinstance(layer.sparsity, Masked)

    def what_is_tied(self, layer: Any) -> nn.Module:
        """Return the mask."""
        return layer.sparsity

    def describe(self, name: str, layer: Any, tied: list[str]) -> LayerRecord:
        """Describe a layer by its mask."""
        sparsity = layer.sparsity
        kind = next(kind for kind, form in KINDS.items() if isinstance(sparsity, form))
        parameters = {"weight": layer.trained, **dict(sparsity.named_parameters())}
        return LayerRecord(
            kind=kind,
            pattern=write_pattern(name, sparsity.pattern),
            density=sparsity.density,
            transposed=sparsity.layout.transposed,
            tied=tied,
            options=options_of(sparsity, kind),
            mask_density=float(sparsity.mask.double().mean()),
            mask_is_legal=sparsity.pattern.allows(sparsity.mask_matrix()),
            frozen=[key for key, parameter in parameters.items() if not parameter.requires_grad],
            storage=DENSE,
        )

    def build(self, name: str, record: LayerRecord, model: nn.Module, state: State) -> None:
        """Give dense layers their mask."""
        if not self.holds(model.get_submodule(name)):
            weight = take_shared_weight(name, record, model)
            sparsity = _build_mask(name, record, weight, state)
            make_sparse(model, dict.fromkeys((name, *record.tied), sparsity))

    def check(self, name: str, record: LayerRecord, layer: Any, state: State) -> None:
        """Raise ValueError unless the mask is legal, where it was so in the model that was saved."""
        mask = layer.sparsity.layout.to_matrix(state[under(name, "sparsity.mask")])
        pattern = parse(record.pattern)
        pattern.check(mask.shape)
        if record.mask_is_legal and not pattern.allows(mask):
            raise ValueError(
                f"{name}: the mask in the checkpoint is not legal for {record.pattern}; save it with a pattern that "
                "allows it"
            )


def _build_mask(name: str, record: LayerRecord, weight: nn.Parameter, state: State) -> Masked:
    layout = record.layout_of(weight)
    own = take_own(name, record, state, _needed(record, layout), weight.device, inside="sparsity.")
    options = dict(record.options)
    bits = options.pop("bits", 0)
    if record.kind == "learned":
        options["scores"] = own["scores"]
        options["score_range"] = options["score_range"] and tuple(options["score_range"])
        weight.requires_grad_("weight" not in record.frozen)
    sparsity = KINDS[record.kind](
        layout.to_matrix(own["mask"]),
        layout,
        pattern=parse(record.pattern),
        density=record.density,
        **options,
    )
    if isinstance(sparsity, Learned) and bits:
        sparsity.bin_weight(weight, bits, transform=(0.0, 1.0), fixed_transform=True)
    for key, _ in list(sparsity.named_parameters()):
        # The model may have been cast after it was made sparse: the dtype is that of the state dict.
        setattr(sparsity, key, nn.Parameter(own[key], requires_grad=key not in record.frozen))
    return sparsity


def _needed(record: LayerRecord, layout: Layout) -> Needed:
    """Return what the mask of a layer whose weight lies so needs in a state dict."""
    needed: dict[str, Any] = {"mask": (torch.bool, layout.shape), **need_energies(record, layout)}
    if record.kind == "learned":
        needed["scores"] = None, parse(record.pattern).grid(layout.matrix_shape)
    if record.options.get("bits"):
        needed |= {"shift": (None, [1]), "scale": (None, [1])}
    if record.kind == "softened":
        contests = count_contests(parse(record.pattern), layout.matrix_shape)
        needed |= {"sharpness": (None, []), "threshold": (None, [contests, 1])}
    return needed
