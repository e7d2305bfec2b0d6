"""What the zeros of a model are good for."""
