"""Who is told: whatever apprise speaks to, and a watcher outside that is pinged.

Addresses are secrets, tokens are a part of them: a notifier is called by the kind of its address and its line in the
file, and no answer of anybody's is repeated in an error. Each call ends within its time, whatever the other side does.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal

from cosmos_coherence import errors, interruption

PING: Final = "ping"
_LONGEST: Final = 64 * 1024
_TRIES: Final = 3
_PAUSE_S: Final = 0.5
_ONE = threading.Lock()
_HTTP: Final = ("http://", "https://")

Tone = Literal["failure", "warning", "success", "info"]


@dataclass(frozen=True, slots=True)
class Address:
    """One notifier. Its ``repr`` does not show where it leads."""

    name: str
    """``json-1``: the kind of its address, and its line in the file."""
    url: str = field(repr=False)


def read(path: Path | None) -> tuple[Address, ...]:
    """The addresses in a file, one a line. ``NotFound``, ``Refused`` when it cannot be read, without what is in it."""
    if path is None:
        return ()
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        url = line.strip()
        if url and not url.startswith("#"):
            kind = re.match(r"[a-z][a-z0-9+.-]{0,19}(?=:/)", url.lower())
            found.append(Address(f"{kind[0] if kind else 'unknown'}-{number}", url))
    return tuple(found)


def ping_url(path: Path | None) -> str:
    """The address of the watcher, empty for none. Raises as ``read``, and ``ConfigurationError`` when it is none."""
    if path is None:
        return ""
    url = _text(path).split("\n", 1)[0].strip()
    if not url.lower().startswith(_HTTP):
        raise errors.ConfigurationError(
            f"the first line of {path} is no address of a watcher", remedy="It begins with https:// or http://."
        )
    return url


def send(addresses: Mapping[str, Address], title: str, body: str, tone: Tone, *, limit_s: float) -> dict[str, str]:
    """Tell all of these at once; by name, why one was not told, empty for one that was. Raises nothing."""
    try:
        importlib.import_module("apprise")  # before the clock runs: it takes its time
    except ImportError:
        return dict.fromkeys(addresses, "apprise is not installed: `pip install 'cosmos-coherence[notify]'`")
    return _all({name: _telling(address, title, body, tone) for name, address in addresses.items()}, limit_s)


def ping(url: str, *, good: bool, limit_s: float) -> str:
    """Tell the watcher that a backup was good, or that it was not; why it could not be told, else empty.

    Tried three times within ``limit_s`` seconds. Raises nothing.
    """
    path, mark, query = url.partition("?")
    where = url if good else f"{path.rstrip('/')}/fail{mark}{query}"
    return _all({PING: lambda: _ping(where, limit_s)}, limit_s)[PING]


def _ping(url: str, limit_s: float) -> str:
    import urllib.error
    import urllib.request

    deadline, said = time.monotonic() + limit_s, ""
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE_S * number)
        if (left := deadline - time.monotonic()) <= 0:
            break
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "cosmos-coherence"})  # noqa: S310 `ping_url`
            with urllib.request.urlopen(request, timeout=max(0.1, left / (_TRIES - number))) as answer:  # noqa: S310
                answer.read(1024)
            return ""
        except urllib.error.HTTPError as error:
            error.close()
            said = f"it answers {error.code}"
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                break
        except TimeoutError:
            said = "it does not answer in time"
        except (OSError, ValueError) as error:  # what the error itself says may hold the address
            reason = getattr(error, "reason", error)
            said = _why(reason)
    return said or "it does not answer in time"


def _telling(address: Address, title: str, body: str, tone: Tone) -> Callable[[], str]:
    def tell() -> str:
        import apprise

        said = _listening()
        asset = apprise.AppriseAsset(
            app_id="Cosmos Coherence", app_desc="Cosmos Coherence", app_url="", image_url_mask="",
            image_url_logo="", plugin_paths=[], async_mode=False,
        )  # fmt: skip
        plugin = apprise.Apprise.instantiate(address.url, asset=asset)
        if plugin is None:
            return "its line is no address that apprise knows"
        if plugin.notify(body=body, title=title, notify_type=apprise.NotifyType(tone)):
            return ""
        return said.answers.get(threading.get_ident(), "it does not answer, or refuses")

    return tell


def _why(error: object) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"
    return "it does not answer in time" if isinstance(error, TimeoutError) else "it cannot be reached"


class _Listener(logging.Handler):
    """Hears what apprise logs, of which nobody is to read more than the status that a server answered with: the rest
    holds addresses."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.answers: dict[int, str] = {}
        """By thread, since one thread tells one notifier."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the status."""
        if record.thread is not None and (answer := re.search(r"error=(\d{3})\b", record.getMessage())):
            self.answers[record.thread] = f"it answers {answer[1]}"


def _listening() -> _Listener:
    logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)  # below, it tells paths, which hold tokens
    logger = logging.getLogger("apprise")
    logger.propagate = False
    with _ONE:
        for handler in logger.handlers:
            if isinstance(handler, _Listener):
                handler.answers.pop(threading.get_ident(), None)
                return handler
        logger.addHandler(listener := _Listener())
        return listener


def _all(calls: Mapping[str, Callable[[], str]], limit_s: float) -> dict[str, str]:
    """Make all calls at once, and wait no longer than that. One that hangs ends with the program."""
    answers = dict.fromkeys(calls, f"no answer within {limit_s:g} s")

    def make(name: str, call: Callable[[], str]) -> None:
        try:
            answers[name] = call()
        except BaseException as error:  # noqa: BLE001 - a notifier is not ours, and its words may be a secret
            answers[name] = f"it broke: {type(error).__name__}"

    threads = [
        interruption.Thread(target=make, args=each, daemon=True, name=f"notify {each[0]}") for each in calls.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", "replace")
    except FileNotFoundError as error:
        raise errors.NotFound(
            f"the addresses in {path} are missing", remedy="Write the file, mode 600, or take it out of `[notify]`."
        ) from error
    except OSError as error:
        raise errors.Refused(f"the addresses in {path} cannot be read: {error.strerror}") from error
