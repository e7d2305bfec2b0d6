"""How values get from one index of a matrix to another when a mask moves, and never through a dense one."""

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.ops.topology import Topology


@final
class Passage:
    """The way of values from one index to another of the same matrix: what both keep goes along, the rest is zero."""

    def __init__(self, old: Topology, new: Topology) -> None:
        self._keeps_order = old.same_grid(new)
        places = torch.full((math.prod(old.grid),), -1, device=old.col.device)
        places[old.cells] = torch.arange(old.num_units, device=old.col.device)
        if self._keeps_order:
            source = places[new.cells]
            self._new = (source < 0).flatten().nonzero()[:, 0]
            self._source = source.clamp(min=0)
        else:
            # An entry of a new unit lies in the old group of its output, at that output's place there.
            place = _places_of(old)[new.outputs_of_units()]
            unit = places[place // old.rows * old.grid[1] + new.col.long()[:, None] // new.columns]
            column = torch.arange(old.columns, device=unit.device)[:, None]
            source = (unit * old.columns)[:, None, :] + column
            source = source * old.rows + (place % old.rows)[:, None, :]
            # What is new comes from behind the last value, where a zero is put.
            nowhere = old.num_units * old.columns * old.rows
            self._source = source.masked_fill_(((place < 0) | (unit < 0))[:, None, :], nowhere)

    def carry(self, values: Tensor) -> Tensor:
        """Return the values in the order of the new index."""
        if self._keeps_order:
            return values.index_select(0, self._source).index_fill_(0, self._new, 0)
        # [units, columns, rows]
        return F.pad(values.flatten(), (0, 1)).index_select(0, self._source.flatten()).view(self._source.shape)


def _places_of(topology: Topology) -> Tensor:
    """Return at which place each output stands, and -1 for what is none."""
    outputs = topology.shape[0]
    places = torch.arange(outputs, device=topology.col.device)
    if topology.order is not None:
        places = torch.empty_like(places).index_copy_(0, topology.order.long(), places)
    return F.pad(places, (0, 1), value=-1)
