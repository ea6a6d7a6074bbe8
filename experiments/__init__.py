"""Commands that evaluate, measure, train and show."""
