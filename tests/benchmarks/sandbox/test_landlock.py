"""Landlock: each of its versions closes all files but those that a program may read."""

import subprocess
import sys

import pytest
from places import TESTS

from lowtax.benchmarks.sandbox import landlock

OLDER = """
import os, sys, tempfile
sys.path.insert(0, sys.argv[1])
from lowtax.benchmarks.sandbox import landlock
folder, secret = tempfile.mkdtemp(), tempfile.mkstemp()[1]
library = os.path.dirname(os.__file__)
for version in range(1, landlock.version() + 1):
    if os.fork() == 0:
        shown = landlock.readable([library, "/dev/null"], [library + "/json"])
        rules = [(os.open(path, os.O_PATH), rights) for path, rights in shown]
        landlock.confine(version, rules, os.open(folder, os.O_PATH))
        reached = []
        for path, flags in ((secret, 0), (secret, os.O_WRONLY), (library + "/json/tool.py", 0), ("/", 0)):
            try:
                os.open(path, flags)
                reached.append(path)
            except PermissionError:
                pass
        os.open(library + "/this.py", os.O_RDONLY), os.open("/dev/null", os.O_RDWR)
        os.mkdir(folder + "/x"), os.rmdir(folder + "/x")
        print(version, reached, flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_version_of_landlock_keeps_files():
    if not landlock.version():
        pytest.skip("no Landlock here")
    source = str(TESTS.parent / "src")
    done = subprocess.run([sys.executable, "-c", OLDER, source], capture_output=True, text=True)
    versions = range(1, landlock.version() + 1)
    assert (done.stdout, done.stderr) == ("".join(f"{version} []\n" for version in versions), "")
