"""What happened: runs and their reports, kept for the fronts."""
