"""The one exception type for mistakes that a person can mend."""


class UserError(ValueError):
    """Something the user gave is wrong: the message names the thing, its value and the remedy.

    `train.py` and `eval.py` print it as one line, without a traceback.
    """
