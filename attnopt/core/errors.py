"""The one exception that means: the user can mend this. The command line prints it as one line and exits with 2."""


class UserError(ValueError):
    """A mistake in params.yaml, a file or an argument; the message names it, what was there and what is allowed."""


class RunError(RuntimeError):
    """A run that cannot go on, though nobody made a mistake; one line, exit code 1."""
