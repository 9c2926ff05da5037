"""What the test tools share: walking trees, inode flags, dpkg's file lists. Standard library only."""

import fcntl
import hashlib
import os
import re
import stat
import struct

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
IMMUTABLE = 0x10
CONFFILE = re.compile(rb"^ (/.*) (?:[0-9a-f]{32}|newconffile)(?: obsolete| remove-on-upgrade)*$")


def flag_immutable(fd, wanted):
    """Set or clear +i; true when that changed something."""
    flags = struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0\0\0\0"))[0]
    if bool(flags & IMMUTABLE) == wanted:
        return False
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags ^ IMMUTABLE))
    return True


def is_immutable(path):
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME)
    try:
        return bool(struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0\0\0\0"))[0] & IMMUTABLE)
    finally:
        os.close(fd)


def set_immutable(path, wanted):
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return flag_immutable(fd, wanted)
    finally:
        os.close(fd)


def walk(top, prune=lambda path: False, directories=False):
    """Every entry below top on its filesystem: (path, os.stat_result); directories only when asked."""
    device = os.lstat(top).st_dev
    pending = [top]
    while pending:
        directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    yield entry.path, status
                    continue
                if directories:
                    yield entry.path, status
                if status.st_dev == device and not prune(entry.path):
                    pending.append(entry.path)


class Canonical:
    """Resolves the directory part of a listed path inside the guest's root; never the last part."""

    def __init__(self, guest):
        self.guest = guest
        self.known = {b"/": b"/"}

    def directory(self, path, links=0):
        if path in self.known:
            return self.known[path]
        if links > 40:
            raise OSError("too many levels of symbolic links: %r" % path)
        parent = self.directory(os.path.dirname(path), links)
        here = os.path.join(parent, os.path.basename(path))
        try:
            target = os.readlink(self.guest + here)
        except OSError:
            found = here
        else:
            joined = os.path.normpath(os.path.join(parent, target))
            found = self.directory(b"/" + joined.lstrip(b"/"), links + 1)
        self.known[path] = found
        return found

    def __call__(self, path):
        path = os.path.normpath(path)
        return os.path.join(self.directory(os.path.dirname(path)), os.path.basename(path))


def conffiles(guest):
    found = set()
    info = os.path.join(guest, b"var/lib/dpkg/info")
    for name in os.listdir(info):
        if name.endswith(b".conffiles"):
            with open(os.path.join(info, name), "rb") as file:
                # A line may begin with a flag.
                found.update(line[line.index(b"/"):] for line in file.read().split(b"\n") if b"/" in line)
    with open(os.path.join(guest, b"var/lib/dpkg/status"), "rb") as file:
        inside = False
        for line in file:
            if line.startswith(b"Conffiles:"):
                inside = True
            elif inside and line.startswith(b" "):
                match = CONFFILE.match(line)
                if match:
                    found.add(match.group(1))
            else:
                inside = False
    return found


def listed_files(guest):
    """{canonical path: lstat} of what packages list and is no configuration file."""
    canonical = Canonical(guest)
    skipped = {canonical(path) for path in conffiles(guest)}
    info = os.path.join(guest, b"var/lib/dpkg/info")
    paths = set()
    for name in os.listdir(info):
        if name.endswith(b".list"):
            with open(os.path.join(info, name), "rb") as file:
                paths.update(line for line in file.read().split(b"\n") if line.startswith(b"/"))
    files = {}
    for path in paths:
        path = canonical(path)
        if path == b"/" or path in skipped or path in files:
            continue
        try:
            files[path] = os.lstat(guest + path)
        except (FileNotFoundError, NotADirectoryError):
            pass
    return files


def xattrs(path):
    return tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False))
                        for name in os.listxattr(path, follow_symlinks=False)))


def digest(path):
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "blake2b").digest()
