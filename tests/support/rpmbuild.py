"""One run of rpmbuild over a tree that is there already. Standard library only."""

import os
import subprocess

MACROS = {
    "debug_package": "%{nil}", "_build_id_links": "none", "_binary_payload": "w1.gzdio",
    "_unpackaged_files_terminate_build": "0", "_invalid_encoding_terminates_build": "0",
    "__spec_install_pre": ":", "__spec_install_post": "%{nil}", "__check_files": "%{nil}",
    "__spec_clean_body": "%{nil}",
}


def build(text, root, work, rpms, name="%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm"):
    """Makes the packages of the spec `text` out of the files in `root`; `work` is for rpmbuild's own."""
    path = os.path.join(work, "spec")
    with open(path, "wb") as file:
        file.write(os.fsencode(text))
    macros = {**MACROS, "_topdir": work, "_builddir": work, "_rpmdir": os.path.abspath(rpms), "_rpmfilename": name,
              "_dbpath": os.path.join(work, "rpmdb")}
    command = ["rpmbuild", "-bb", "--quiet", "--nodeps", "--noclean", "--target", "x86_64", "--buildroot", root]
    for macro, value in macros.items():
        command += ["--define", "%s %s" % (macro, value)]
    done = subprocess.run([*command, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    if done.returncode:
        raise OSError("rpmbuild: " + done.stdout.decode(errors="backslashreplace")[-2000:])
