"""What answers and programs are measured by."""
