"""One instant: hold the writers, and let go of them again whatever happens."""
