"""The story: backup, restore, retention and recovery, each one function that reads from top to bottom."""
