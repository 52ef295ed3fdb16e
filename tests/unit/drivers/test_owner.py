import os
import subprocess

import msgspec

from cosmos_coherence.drivers import owner


def test_this_process_lives_and_what_has_ended_does_not():
    mine = owner.ourselves()
    assert mine.pid == os.getpid()
    assert owner.lives(mine) is True
    child = subprocess.Popen(["sleep", "0"])
    child.wait()
    assert owner.lives(msgspec.structs.replace(mine, pid=child.pid)) is False


def test_a_process_with_the_id_of_another_is_not_that_other():
    assert owner.lives(msgspec.structs.replace(owner.ourselves(), birth=1)) is False


def test_of_another_machine_or_namespace_nothing_is_known():
    for strange in ({"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": ""}):
        assert owner.lives(msgspec.structs.replace(owner.ourselves(), **strange)) is None
