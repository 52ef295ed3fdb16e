"""Where every call ends: words or one JSON document for what went wrong, and the exit status."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path

import typer

from cosmos_coherence import errors, interruption
from cosmos_coherence.cli import context

_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""The parser's own error; typer exports only this child of it."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Parse and carry out one call; its exit status. Nothing is raised, and a traceback is shown to ``--debug`` only.

    SIGTERM and SIGHUP (a service manager, a lost terminal) mean what Ctrl-C does: go back, then end with 130.
    """
    as_json = "--json" in arguments
    interruption.listen()
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a strange name ends no run
    try:
        return _carried_out(app, arguments)
    except BrokenPipeError:  # `cosmos list | head`: nobody reads any more, nobody is to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.CosmosError.exit_status
    except BaseException as error:  # noqa: BLE001 - this is where they all end
        if context.given.debug:
            traceback.print_exc()
        return say(in_our_words(error), as_json=as_json)


def _carried_out(app: typer.Typer, arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("cosmos", arguments or ["--help"]) as call:
            command.invoke(call)
    except typer.Exit as end:
        return end.exit_code
    return 0


def say(error: errors.CosmosError, *, as_json: bool) -> int:
    """The sentence and the remedy on standard error, or all of it as JSON on standard output; the exit status."""
    if as_json:
        failure = {"code": error.code, "message": error.message, "remedy": error.remedy}
        typer.echo(json.dumps({"status": "failed", "exit_status": error.exit_status, "failure": failure}))
    else:
        typer.echo(f"error: {error.message}", err=True)
        if error.remedy:
            typer.echo(f"  {error.remedy}", err=True)
    return error.exit_status


def in_our_words(error: BaseException) -> errors.CosmosError:
    """The error of the catalogue for whatever ended a call. What an unknown exception says is left out: it may be a
    secret."""
    match error:
        case errors.CosmosError():
            return error
        case KeyboardInterrupt() | typer.Abort():
            return errors.Interrupted("interrupted")
        case _ if isinstance(error, _USAGE):
            return _misused(error)
        case MemoryError():
            return errors.CosmosError(
                "there is not enough memory", remedy="Free some, or set `backup.workers` to 1; then run it again."
            )
        case OSError() if error.strerror:
            kind = errors.NoRoom if error.errno in _NO_ROOM else errors.CosmosError
            return kind(f"the system says: {error.strerror}{f': {error.filename}' if error.filename else ''}")
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" in {Path(last[0].filename).name}, line {last[0].lineno}" if last else ""
    return errors.CosmosError(
        f"this is a fault of the program: {type(error).__name__}{where}",
        remedy="Please report it with what `cosmos --debug` and the same call print; look it through for secrets.",
    )


def _misused(error: Exception) -> errors.UsageError:
    said = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    call = getattr(error, "ctx", None)
    path = call.command_path if call is not None else "cosmos"
    return errors.UsageError(said[:1].lower() + said[1:], remedy=f"See `{path} --help`.")
