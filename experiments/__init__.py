"""Commands that evaluate, measure, train and show."""

from models.interrupts import end_at_once_while_importing

end_at_once_while_importing()
