"""The exception for errors that the user can fix."""


class UserError(Exception):
    """Invalid input or settings. Jobs print the message, a sentence that names the culprit, and exit with status 2."""
