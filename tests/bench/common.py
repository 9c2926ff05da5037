"""What the benchmarks share. Whoever imports it can import the modules of tests/support, too."""

import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
SUPPORT = os.path.join(HERE, "..", "support")
TARGET = os.path.realpath(os.path.join(HERE, "..", "..", "target"))
PACKAGES = os.path.join(TARGET, "packages")
PROGRAMS = os.path.join(TARGET, "dist")
sys.path.insert(0, SUPPORT)


def tool(name, *arguments, **options):
    return subprocess.run([os.path.join(SUPPORT, name), *arguments], check=True, **options)


def quiet(*command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def packages(guests, what):
    """The names that `guests` or `rpm-guests` lists as `what`."""
    return tool(guests, "packages", what, stdout=subprocess.PIPE, text=True).stdout.split()


def install_hooks(guest):
    package = next(name for name in os.listdir(PACKAGES) if name.startswith("cow-hooks_"))
    shutil.copy(os.path.join(PACKAGES, package), guest)
    tool("guests", "run", guest, "--", "apt-get", "install", "/" + package, stdout=subprocess.DEVNULL)
