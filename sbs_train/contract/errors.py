"""Errors a user can act on. Every message is one line and names the remedy."""


class SbsError(ValueError):
    """Bad input: the command line prints the message alone and exits with `exit_code`."""

    exit_code = 2


class GateFailed(SbsError):
    """The work finished, but its result fails a check: validation failed, or a budget was not reached."""

    exit_code = 1
