"""The exceptions whose message is for the user: a line, never a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: what is wrong, what was found, what to do, in one line."""


class DataError(UserError):
    """The images that are due cannot be had; what was done until then is whole."""
