"""Layers whose products use a sparse weight, and the swap that turns a dense layer into one and back."""
