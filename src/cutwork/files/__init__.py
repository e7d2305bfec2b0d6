"""Models in files: save, load, describe."""
