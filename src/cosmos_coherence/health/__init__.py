"""Is the stack well, and is its backup young enough."""
