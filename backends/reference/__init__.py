"""The NumPy oracle: one reference kernel per op, interpreted node by node."""
