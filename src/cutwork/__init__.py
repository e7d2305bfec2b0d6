"""cutwork: structured sparse training and inference for PyTorch."""

from cutwork.allocation import er as er
from cutwork.allocation import erk as erk
from cutwork.allocation import uniform as uniform
from cutwork.exploration import Exploration as Exploration
from cutwork.methods import STE as STE
from cutwork.methods import GraNet as GraNet
from cutwork.methods import Gradual as Gradual
from cutwork.methods import Method as Method
from cutwork.methods import RigL as RigL
from cutwork.methods import SRigL as SRigL
from cutwork.methods import Static as Static
from cutwork.methods import Supermask as Supermask
from cutwork.methods import Switch as Switch
from cutwork.methods import set_ as set_
from cutwork.methods import srste as srste
from cutwork.patterns import Pattern as Pattern
from cutwork.patterns import parse as parse
from cutwork.schedules import constant as constant
from cutwork.schedules import cosine as cosine
from cutwork.schedules import cubic as cubic
from cutwork.schedules import exponential as exponential
from cutwork.schedules import linear as linear
from cutwork.schedules import power as power
from cutwork.scores import gradient as gradient
from cutwork.scores import magnitude as magnitude
from cutwork.scores import random as random
from cutwork.scores import taylor as taylor
from cutwork.sparsifier import Sparsifier as Sparsifier
from cutwork.sparsify import bake as bake
from cutwork.sparsify import freeze_zeros as freeze_zeros
from cutwork.sparsify import sparsify as sparsify

__version__ = "0.1.0"
