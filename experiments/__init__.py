"""Commands that evaluate, measure, train and show."""

import sys

from models.interrupts import end_at_once_while_importing

if sys.argv[:1] == ["-m"]:  # Python calls itself so until it has found the command's module
    end_at_once_while_importing()
