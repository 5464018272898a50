"""Devices that plan but never run: for planner and search tests, and as a skeleton of a backend."""
