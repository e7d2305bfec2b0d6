"""Programs built on the whole package: training runs with their recipes, and the demonstration."""
