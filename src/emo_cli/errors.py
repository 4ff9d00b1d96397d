"""The one exception that users cause; only `cli.main` catches it."""


class EmoError(Exception):
    """What a user can put right: one line that says what is wrong, one hint that says what to do.

    `exit_code` is what the command line returns: 1 for bad input, 2 for wrong usage.
    """

    def __init__(self, message: str, hint: str = "", *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
