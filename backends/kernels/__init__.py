"""The shared kernel language of the GPU-like backends: IR, builder, templates, renderers, lowering, device."""
