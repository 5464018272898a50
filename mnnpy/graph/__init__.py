"""The graph: element types, dimensions, values, nodes, text form and files."""
