"""The schedule, unattended; needs no database."""
