"""Passes over a segment that several devices share; each keeps the graph valid and the names of its outputs."""
