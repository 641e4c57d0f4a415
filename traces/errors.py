"""The one exception for bad user input."""


class InputError(ValueError):
    """Bad input from a user: a file, a flag or a field.

    The message is one line that names the place (file and line, or field), the value, and what would be right.
    Command lines print it to standard error and exit with status 2; the HTTP front answers 4xx with it.
    """
