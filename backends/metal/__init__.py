"""Metal through pyobjc."""
