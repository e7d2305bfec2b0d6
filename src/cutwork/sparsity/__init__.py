"""How one layer holds its mask: one way a file."""
