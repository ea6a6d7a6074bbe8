"""Tables, figures, patch maps and pages."""
