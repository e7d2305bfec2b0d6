"""cutwork: structured sparse training and inference for PyTorch."""

__version__ = "0.1.0"
