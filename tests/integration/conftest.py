import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def roomy():
    """A folder on a disk that every user can enter; pytest's own is private to this one."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-", dir="/var/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
