"""Programs built on everything else."""
