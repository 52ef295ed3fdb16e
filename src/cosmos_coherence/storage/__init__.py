"""Where archives and repositories lie."""
