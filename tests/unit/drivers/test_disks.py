"""What lies below a file system: on this machine's own, on a loop device, and as the kernel shows other machines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cosmos_coherence.drivers import disks

PARTITION = ("block/sda", "block/sda/sda2")


class Machine:
    """A ``/sys`` and a ``mountinfo`` as a kernel writes them."""

    def __init__(self, folder: Path) -> None:
        self.system, self.mounts = folder / "sys", folder / "mountinfo"
        (self.system / "dev" / "block").mkdir(parents=True)
        (self.system / "class" / "block").mkdir(parents=True)
        self.mounts.write_text("")

    def device(self, path: str, number: str, *, slaves=(), **files: str) -> None:
        """``files``: ``queue_rotational="1"`` is the file ``queue/rotational``."""
        place = self.system / "devices" / path
        (place / "slaves").mkdir(parents=True)
        for name in slaves:
            (place / "slaves" / name).symlink_to((self.system / "class" / "block" / name).resolve())
        for name, text in files.items():
            file = place / name.replace("_", "/", 1)
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{text}\n")
        (self.system / "dev" / "block" / number).symlink_to(place)
        (self.system / "class" / "block" / place.name).symlink_to(place)

    def mount(self, point: str, number: str, kind: str, source: str) -> None:
        with self.mounts.open("a") as file:
            file.write(f"30 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw\n")

    def below(self, path: str) -> disks.Disk:
        return disks.below(Path(path), system=self.system, mounts=self.mounts)


@pytest.fixture
def machine(tmp_path):
    found = Machine(tmp_path)
    found.device("pci/sda", "8:0", queue_rotational="1")
    found.device("pci/sda/sda2", "8:2", partition="2")
    found.device("pci/nvme0n1", "259:0", queue_rotational="0")
    found.mount("/", "8:2", "ext4", "/dev/sda2")
    return found


def test_a_partition_of_a_plain_disk(machine):
    assert machine.below("/var/lib/docker") == disks.Disk("ext4 on sda2", encrypted=False, rotational=True)


def test_lvm_on_luks(machine):
    machine.device("virtual/dm-0", "253:0", slaves=["nvme0n1"], dm_uuid="CRYPT-LUKS2-abc-root", queue_rotational="0")
    machine.device("virtual/dm-1", "253:1", slaves=["dm-0"], dm_uuid="LVM-abc", dm_name="vg-docker")
    machine.mount("/var/lib/docker", "253:1", "xfs", "/dev/mapper/vg-docker")
    assert machine.below("/var/lib/docker/volumes") == disks.Disk("xfs on dm-1", encrypted=True, rotational=False)
    assert machine.below("/var/lib/dockers").encrypted is False, "another folder that only begins the same"


def test_a_mirror_of_which_one_half_is_plain(machine):
    machine.device("virtual/dm-0", "253:0", slaves=["nvme0n1"], dm_uuid="CRYPT-LUKS2-abc-x")
    machine.device("virtual/md0", "9:0", slaves=["dm-0", "sda"])
    machine.mount("/srv", "9:0", "ext4", "/dev/md0")
    assert machine.below("/srv") == disks.Disk("ext4 on md0", encrypted=False, rotational=True)


def test_btrfs_over_several_devices_which_has_no_device_number(machine):
    machine.device("virtual/dm-0", "253:0", slaves=["nvme0n1"], dm_uuid="CRYPT-LUKS2-abc-x", dm_name="one")
    for name in ("dm-0", "sda"):
        (machine.system / "fs/btrfs/uuid/devices" / name).mkdir(parents=True)
    machine.mount("/srv", "0:40", "btrfs", "/dev/mapper/one")
    assert machine.below("/srv") == disks.Disk("btrfs on dm-0, sda", encrypted=False, rotational=True)


@pytest.mark.parametrize(
    ("kind", "source", "encrypted"),
    [("overlay", "overlay", None), ("tmpfs", "tmpfs", None), ("nfs4", "host:/x", None), ("zfs", "tank/x", None),
     ("fuse.gocryptfs", "/cipher", True), ("ecryptfs", "/x", True)],
)  # fmt: skip
def test_file_systems_without_a_device_of_ours(machine, kind, source, encrypted):
    machine.mount("/srv", "0:50", kind, source)
    assert machine.below("/srv") == disks.Disk(kind, encrypted=encrypted, rotational=None)


def test_what_a_virtual_disk_says_of_turning_is_not_believed(machine):
    machine.device("virtio/vda", "254:0", queue_rotational="1")
    machine.mount("/srv", "254:0", "ext4", "/dev/vda")
    assert machine.below("/srv") == disks.Disk("ext4 on vda", encrypted=False, rotational=None)


def test_the_last_mount_at_a_place_is_the_one_that_shows(machine):
    machine.mount("/a\\040b", "259:0", "ext4", "/dev/nvme0n1")
    assert machine.below("/a b/c").rotational is False
    machine.mount("/a\\040b", "0:50", "tmpfs", "tmpfs")
    assert machine.below("/a b/c").name == "tmpfs"


def test_devices_that_lie_on_themselves_end(machine):
    machine.device("virtual/loop0", "7:0", loop_backing_file="/srv/file")
    machine.mount("/srv", "7:0", "ext4", "/dev/loop0")
    assert machine.below("/srv") == disks.Disk("ext4 on loop0")


def test_nothing_can_be_read(tmp_path):
    assert disks.below(tmp_path, system=tmp_path, mounts=tmp_path / "no").encrypted is None


def test_this_machine_and_a_loop_device_on_it(tmp_path):
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("only root can make a loop device")
    here = disks.below(tmp_path.resolve())
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        found = disks.below(place)
        assert found.name.startswith("ext4 on loop")
        assert (found.encrypted, found.rotational) == (here.encrypted, here.rotational)
    finally:
        subprocess.run(["umount", place], check=True)
