"""The one exception that the command line turns into a sentence and exit code 2."""


class UserError(Exception):
    """Something outside the program is wrong: the message names it and says what to do, in one sentence."""
