"""The one exception that stands for a mistake its user can mend."""


class UserError(Exception):
    """Bad input or settings. Its text is one sentence that names the culprit; jobs print it and exit with status 2."""
