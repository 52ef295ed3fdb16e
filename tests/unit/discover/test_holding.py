"""Who is held, and by what, as the labels of a stack say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.discover.holding import holding, outside
from cosmos_coherence.model import Mount, Quiet, Service, SourceRef, Stack

FILES = SourceRef(kind="volume", part="volumes/files", volume="shop_files")
UPLOADS = SourceRef(kind="files", part="files/uploads", path=Path("/srv/shop/uploads"))
MOUNT = Mount("volume", "shop_files", "/files")


def service(name, *mounts, state="running", **labels):
    dotted = {f"cosmos.{key.replace('_', '.')}": value for key, value in labels.items()}
    return Service(name, f"shop-{name}-1", mounts=mounts, state=state, labels=dotted)


def stack_of(*services, neighbours=(), program=""):
    return Stack("shop", "docker", Path("/srv/shop"), services=services, neighbours=tuple(neighbours), program=program)


def frozen(stack, engines=("db",)):
    return [s.name for s in holding(stack, engines).freeze]


def test_who_stands_still():
    stack = stack_of(
        service("db"),
        service("app"),
        service("said", hold="freeze"),
        service("own", hold="hook", hold_before="sync"),
        service("both", hold_before="sync", hold_after="go"),
        service("down", hold="stop"),
        service("agent", hold="never"),
        service("paused", state="paused"),
        service("me"),
        neighbours=[service("guest", hold="stop"), service("stranger", hold="never"), service("odd", hold="?")],
        program="shop-me-1",
    )
    assert frozen(stack) == ["app", "said", "both", "down", "guest", "odd"]
    assert holding(stack, {"db"}).quiet == (
        Quiet("both", "sync", "go"),
        Quiet("down", stop=True),
        Quiet("own", "sync"),
    )


def test_hooks_of_strangers_and_of_services_that_do_not_run_are_not_run():
    stack = stack_of(
        service("off", state="exited", hold="stop"),
        service("paused", state="paused", hold_before="x"),
        neighbours=[service("guest", hold_before="x")],
    )
    assert holding(stack, ()).quiet == ()


def test_a_server_may_have_hooks_and_is_not_frozen():
    stack = stack_of(service("db", hold_before="checkpoint"))
    assert frozen(stack) == []
    assert holding(stack, {"db"}).quiet == (Quiet("db", "checkpoint"),)


def test_every_label_that_makes_no_sense_is_named_at_once():
    stack = stack_of(
        service("a", hold="Never"),
        service("b", hold=""),
        service("c", hold="hook"),
        service("d", hold="stop", hold_after="x"),
        service("e", hold="never", hold_before="x"),
        service("db", hold="stop"),
        service("off", state="exited", hold="unheard"),
    )
    with pytest.raises(errors.ConfigurationError) as caught:
        holding(stack, {"db"})
    said = caught.value.message
    assert "cosmos.hold='Never' of service a is not one of freeze, hook, stop, never" in said
    assert "cosmos.hold='' of service b" in said
    assert "cosmos.hold=hook of service c needs cosmos.hold.before" in said
    assert "cosmos.hold.after of service d does not go with cosmos.hold=stop" in said
    assert "cosmos.hold.before of service e does not go with cosmos.hold=never" in said
    assert "cosmos.hold=stop of service db: a database server is anchored" in said
    assert "cosmos.hold='unheard' of service off" in said


def gaps(stack, held=(), engines=("db",)):
    return [g.what for g in outside(stack, [FILES, UPLOADS], engines=engines, held=held)]


def test_whoever_can_write_and_is_not_held_is_named():
    stack = stack_of(
        service("app", MOUNT),
        service("cron", MOUNT, hold="never"),
        service("loops", MOUNT, state="restarting"),
        neighbours=[service("guest", MOUNT, hold="never")],
    )
    assert gaps(stack, held={"shop-app-1"}) == [
        "what container shop-cron-1 writes to volumes/files",
        "what container shop-loops-1 writes to volumes/files",
        "what container shop-guest-1 from outside the stack writes to volumes/files",
    ]
    (gap, *_) = outside(stack, [FILES], engines=(), held={"shop-app-1", "shop-loops-1", "shop-guest-1"})
    assert (gap.chosen, "cosmos.hold=never" in gap.why) == (False, True)


def test_a_folder_of_the_host_is_shared_by_whoever_mounts_it_or_what_is_around_or_inside_it():
    stack = stack_of(
        service("whole", Mount("bind", "/srv/shop/uploads", "/u")),
        service("around", Mount("bind", "/srv", "/host")),
        service("inside", Mount("bind", "/srv/shop/uploads/a", "/a")),
        service("beside", Mount("bind", "/srv/shop/uploads2", "/b")),
    )
    assert [what.split()[2] for what in gaps(stack)] == ["shop-whole-1", "shop-around-1", "shop-inside-1"]


@pytest.mark.parametrize(
    "quiet",
    [
        service("held", MOUNT),
        service("reader", Mount("volume", "shop_files", "/files", writable=False)),
        service("own", MOUNT, hold="hook", hold_before="sync"),
        service("db", MOUNT),
        service("paused", MOUNT, state="paused"),
        service("other", Mount("volume", "shop_other", "/files")),
        service("me", MOUNT, hold="never"),
    ],
    ids=lambda one: one.name,
)
def test_who_cannot_write_or_is_held_is_not_named(quiet):
    assert gaps(stack_of(quiet, program="shop-me-1"), held={"shop-held-1"}) == []
