"""What a model costs: operations, bytes, and how its masks look."""
