"""Commands that answer one question about the method or the machine."""
