"""What is computed, in plain PyTorch or by a kernel: products with compressed weights, and choices of what is kept.

The products are operators, each with a schema, a reference, a fake and gradients, which are registered on import. The
choices say which rows belong together and which entries are kept; a kernel enters itself for them in `dispatch`.
"""

# First: importing torch registers the operators, which must not find a file of this folder half imported.
import torch as torch

from cutwork.ops import batch_norm as batch_norm
from cutwork.ops import block_conv2d as block_conv2d
from cutwork.ops import block_linear as block_linear
from cutwork.ops import int8_linear as int8_linear
from cutwork.ops import overhearing as overhearing
