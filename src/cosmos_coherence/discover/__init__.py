"""What is this stack, what is in it, and what would a backup not hold."""
