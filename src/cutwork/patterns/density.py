"""How much of a matrix is kept: a share above 0, up to 1."""

from numbers import Real


def check_density(density: float, what: str = "density") -> float:
    """Return a density as a float; raise ValueError unless it is above 0, and at most 1."""
    if not isinstance(density, Real):
        raise TypeError(f"{what} is a number; got {density!r} ({type(density).__name__}); write {what}=0.1")
    if not 0 < density <= 1:
        raise ValueError(f"{what}={density} is outside (0, 1]; 0.1 keeps a tenth of the weights")
    # A number of numpy could not be written to a file.
    return float(density)
