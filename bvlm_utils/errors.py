"""Which mistakes are the user's? Those carry one clear sentence; command lines print it and exit with 2."""


class InputError(ValueError):
    """A value that the user gave is wrong; the message names the value, the place and what would be right."""


class StudyError(RuntimeError):
    """Some cells of a study failed; the message lists them. Finished cells are kept."""
