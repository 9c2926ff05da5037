"""What the test tools share: walking trees, inode flags, dpkg's and rpm's file lists. Standard library only."""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
IMMUTABLE = 0x10
SHOWN = 20
RPM_CONFIG, RPM_GHOST = 1, 64
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


def dpkg_conffiles(guest):
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


def dpkg_files(guest):
    """{path: whether it is a configuration file} of what packages list"""
    paths = {}
    info = os.path.join(guest, b"var/lib/dpkg/info")
    for name in os.listdir(info):
        if name.endswith(b".list"):
            with open(os.path.join(info, name), "rb") as file:
                paths.update((line, False) for line in file.read().split(b"\n") if line.startswith(b"/"))
    paths.update((path, True) for path in dpkg_conffiles(guest))
    return paths


def rpm_database(guest):
    """Its directory from the guest's root, or None where dpkg manages the guest."""
    if os.path.exists(os.path.join(guest, b"var/lib/dpkg/status")):
        return None
    found = [path for path in (b"/var/lib/rpm", b"/usr/lib/sysimage/rpm")
             if os.path.exists(guest + path + b"/rpmdb.sqlite")]
    return found[0] if found else None


def rpm_query(guest, *arguments):
    """What rpm prints about a copy of the guest's database: a query would write to the database's directory."""
    with tempfile.TemporaryDirectory() as copy:
        for name in (b"rpmdb.sqlite", b"rpmdb.sqlite-wal"):
            path = os.path.join(guest + rpm_database(guest), name)
            if os.path.exists(path):
                shutil.copyfile(path, os.path.join(os.fsencode(copy), name))
        done = subprocess.run(["rpm", "--dbpath", copy, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False)
    return done.stdout


def rpm_files(guest):
    """{path: whether it is a configuration file, or one that packages merely claim}"""
    paths = {}
    for line in rpm_query(guest, "-qa", "--qf", "[%{FILENAMES}\t%{FILEFLAGS}\n]").split(b"\n"):
        if line.startswith(b"/"):
            path, flags = line.rsplit(b"\t", 1)
            paths[path] = paths.get(path, False) or bool(int(flags) & (RPM_CONFIG | RPM_GHOST))
    return paths


def package_files(guest):
    """{canonical path: whether it is a configuration file} of what packages list, be it there or not"""
    canonical = Canonical(guest)
    found = {}
    for path, config in (rpm_files if rpm_database(guest) else dpkg_files)(guest).items():
        path = canonical(path)
        found[path] = found.get(path, False) or config
    return found


def listed_files(guest):
    """{canonical path: lstat} of what packages list and is no configuration file."""
    files = {}
    for path, config in package_files(guest).items():
        if path != b"/" and not config:
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


def show_wrong(wrong):
    """Prints {check: [what is wrong]}, of each check the first SHOWN lines."""
    for what, lines in wrong.items():
        print("%-11s %s" % (what, "%d WRONG" % len(lines) if lines else "ok"))
        for line in lines[:SHOWN]:
            print("            " + line.encode("ascii", "backslashreplace").decode())
        if len(lines) > SHOWN:
            print("            ... and %d more" % (len(lines) - SHOWN))
