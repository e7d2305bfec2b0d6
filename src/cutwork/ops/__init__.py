"""The operators on compressed weights, each with a schema, a reference, a fake and gradients.

Importing this package registers every operator.
"""

# First: importing torch registers the operators, which must not find a file of this folder half imported.
import torch as torch

from cutwork.ops import block_conv2d as block_conv2d
from cutwork.ops import block_linear as block_linear
from cutwork.ops import int8_linear as int8_linear
from cutwork.ops import overhearing as overhearing
