"""Vulkan compute through the ``vulkan`` bindings."""
