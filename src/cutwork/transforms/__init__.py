"""Changing a dense model into a larger, sparser one that costs the same."""
