"""dnf's plugin of cow-hooks: asks before anything is downloaded whether rpm could replace and remove these files.

It changes nothing; what is to be done is done by rpm's own plugin, or its file triggers.
"""

import logging
import os
import subprocess
import tempfile

import dnf
import dnf.exceptions
import dnf.transaction

PROGRAM = "/usr/libexec/cow-hooks/cow-rpm"
REFUSED = 3
GOES = dnf.transaction.BACKWARD_ACTIONS + [dnf.transaction.PKG_REINSTALLED]

logger = logging.getLogger("dnf.plugin.cow_hooks")


class CowHooks(dnf.Plugin):
    name = "cow_hooks"

    def resolved(self):
        refusal = None
        # Whatever goes wrong here must not keep dnf from its work.
        try:
            refusal = check(self.base)
        except Exception as e:
            logger.warning("cow-hooks: files were not checked: %s", e)
        if refusal:
            raise dnf.exceptions.Error(refusal)


def check(base):
    """Why this transaction would be refused, if it would."""
    conf = base.conf
    touches_nothing = conf.downloadonly or {"test", "justdb"} & set(conf.tsflags)
    if touches_nothing or conf.installroot != "/" or os.environ.get("COW_HOOKS") == "off":
        return None
    if not os.access(PROGRAM, os.X_OK):
        return None
    paths = [path for item in base.transaction or () if item.action in GOES for path in item.pkg.files]
    if not paths:
        return None
    # Not a pipe: a program that does not read it would end dnf, which lets SIGPIPE kill it.
    with tempfile.TemporaryFile() as told:
        told.write(os.fsencode("".join(path + "\n" for path in paths)))
        told.seek(0)
        done = subprocess.run([PROGRAM, "check"], stdin=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = os.fsdecode(done.stderr).strip()
    if done.returncode == REFUSED:
        return said
    if said:
        logger.warning("%s", said)
    return None
