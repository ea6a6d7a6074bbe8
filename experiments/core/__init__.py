"""What all commands stand on: the command line, settings, journals, workers."""
