"""The parser of ``cosmos volume``: looking after volumes."""

from __future__ import annotations

import typer

volume = typer.Typer(help="Look after volumes: sizes, forecasts, copies, owners, clean-up.", rich_markup_mode=None)
