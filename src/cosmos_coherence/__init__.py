"""Backup, proven restore and volume management for Docker Compose stacks, at one instant."""

__version__ = "0.1.0"
