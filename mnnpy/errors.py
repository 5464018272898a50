"""The exception tree of mnnpy.

Every error says what went wrong, where (node, op, shapes, dtype, backend), why, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "ContainerError",
    "DeployError",
    "InputError",
    "MnnpyError",
    "ModelError",
    "ShapeError",
    "UnsupportedOpError",
]


class MnnpyError(Exception):
    """Base class of every error that mnnpy raises on purpose."""


class ModelError(MnnpyError):
    """A model file or graph is malformed, inconsistent or beyond a stated limit."""


class ShapeError(ModelError):
    """Shapes, ranks or dtypes of a node's operands do not fit its op."""


class UnsupportedOpError(ModelError):
    """The model uses ops that mnnpy (or the chosen backends) cannot run; lists all of them."""


class InputError(MnnpyError, ValueError):
    """A value handed to a Session is missing, unknown, or of the wrong dtype, rank or shape."""


class BackendError(MnnpyError, RuntimeError):
    """A backend failed while compiling or running."""


class BackendUnavailableError(BackendError):
    """The backend that was asked for does not exist or cannot be used on this machine."""


class ContainerError(MnnpyError):
    """A task package or the VM that runs it failed."""


class DeployError(MnnpyError):
    """A release, a repository or a device client failed."""
