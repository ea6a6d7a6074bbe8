"""Commands that are killed at random moments, and must leave what an undisturbed run leaves."""
