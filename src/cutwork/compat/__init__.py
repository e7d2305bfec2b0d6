"""Working with other packages: their names, their files, and ways around where they do not fit together."""

from cutwork.compat import pruned, superblock

__all__ = ["pruned", "superblock"]
