"""Removing whole channels: which ones stay, and the smaller network that they make."""
