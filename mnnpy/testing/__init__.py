"""Testing of backends: ``pytest -p mnnpy.testing.plugin --mnnpy-backend NAME``."""
