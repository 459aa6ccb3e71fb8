"""The base of every error that is the user's to mend.

It lives on the lowest floor so that every package may derive from it. Stages catch it, print its
one paragraph and exit 2; any other exception is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in a configuration, a file or a command.

    The message says what was expected, what came, where, and what to do about it.
    """
