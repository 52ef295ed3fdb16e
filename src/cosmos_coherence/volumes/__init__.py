"""Looking after volumes: what they hold and how large they are."""
