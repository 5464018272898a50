"""Passes over a segment on its way to the native program; each keeps the graph valid and its outputs' names."""
