"""The errors a user can meet: each says what is wrong, where, and what to do, in one sentence."""


class HybridizeError(Exception):
    """Any error of this package; shown without a traceback and mapped to an exit code."""

    exit_code = 1


class RecipeError(HybridizeError, ValueError):
    """A recipe, or an option that stands for one of its values, cannot be carried out."""

    exit_code = 2


class ModelError(HybridizeError, ValueError):
    """A model folder, a layout or a weight map does not fit what was asked of it."""

    exit_code = 2


class RunError(HybridizeError, ValueError):
    """A run folder is stale, incomplete or not what it was taken for."""

    exit_code = 2


class MachineError(HybridizeError):
    """The machine lacks something: a package, a kernel, memory or disk."""

    exit_code = 3


class Interrupted(HybridizeError):
    """The run was stopped on request and can be continued from what it had finished.

    The exit code is 128 + the number of the signal: 130 after Ctrl-C, 143 after SIGTERM.
    """

    exit_code = 130

    def __init__(self, message: str, *, terminated: bool = False) -> None:
        """Say how to continue; `terminated` where SIGTERM asked."""
        super().__init__(message)
        if terminated:
            self.exit_code = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came where Ctrl-C raises KeyboardInterrupt."""
