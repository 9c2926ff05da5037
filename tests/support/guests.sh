# What `guests` and `rpm-guests` share: a cache of what was built once, restoring it, running inside. To be sourced
# by a script that has a line "# recipe" and a line "# end of recipe" with what makes the guests what they are in
# between, and these:
#
#   build_store     fills the directory $new: base.tar, and srv/, which guests see as /srv
#   needs_tools     fails when a program is missing
#   lock            the name of the lock below $cache
#   recipe_more     prints what else makes the guests what they are; if there is such
#
# Guests of different recipes live side by side: $cache/HASH is $store.

here=$(dirname "$0")
cache=${COW_TESTS_CACHE:-/var/cache/cow-hooks-tests}
name=$(basename "$0")

fail() { echo "$name: $*" >&2; exit 2; }
usage() { sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
recipe() { sed -n '/^# recipe/,/^# end of recipe/p' "$0"; }
find_store() {
    store=$cache/$({ recipe; if command -v recipe_more >/dev/null; then recipe_more; fi; } | sha256sum | cut -c1-12)
}
is_complete() { [ -e "$store/base.tar" ]; }

unpack() { tar --xattrs --xattrs-include='*' --acls --numeric-owner -xpf "$1" -C "$2"; }
pack() { tar --xattrs --xattrs-include='*' --acls --numeric-owner --sort=name -cf "$1" -C "$2" .; }

take_lock() {
    mkdir -p "$cache"
    exec 9>"$cache/$lock"
    flock 9
}

build() {
    take_lock
    if [ "${1-}" != --rebuild ] && is_complete; then
        touch "$store"
        return
    fi
    needs_tools
    new=$cache/new.$$ scratch=$cache/scratch.$$
    trap 'rm -rf "$new" "$scratch"' EXIT
    trap 'exit 130' INT TERM HUP
    mkdir "$new"
    start=$(date +%s)
    build_store 9>&-
    rm -rf "$store"
    mv "$new" "$store"
    echo "$name: built in $(($(date +%s) - start)) s; $(du -sh "$store" | cut -f1) in $store"
    # Recipes nobody has built with for a week, and what a killed build left.
    find "$cache" -mindepth 1 -maxdepth 1 -type d ! -path "$store" -mtime +7 -exec rm -rf {} +
}

# What apt on this machine is configured to reach its archive with: proxies, certificates, passwords.
network() {
    apt-config dump | grep -i '^Acquire::\(http\|https\|ftp\)::' || :
    eval "$(apt-config shell netrc Dir::Etc::netrc/f parts Dir::Etc::netrcparts/d)"
    printf '%s;\n' "Dir::Etc::netrc \"$netrc\"" "Dir::Etc::netrcparts \"$parts\"" 'Acquire::Retries "3"'
}

# mmdebstrap out of this machine's archive.
bootstrap() { # SUITE TARGET OPTION...; temporary files go to the new directory TARGET.tmp
    suite=$1 target=$2
    shift 2
    source=$("$here/archive" "$suite") || exit
    mkdir "$target.tmp"
    network >"$target.tmp/apt.conf"
    TMPDIR=$target.tmp mmdebstrap --quiet --mode=root --aptopt="$target.tmp/apt.conf" \
        --aptopt='APT::Install-Recommends "false"' "$@" "$suite" "$target" "$source" </dev/null
    rm -rf "$target.tmp"
}

# apt-get for a guest, by this machine's way to the archive: it downloads to $new/archives, and installs nothing.
apt_for() { # GUEST ARGUMENT...
    {
        printf '%s;\n' "Dir \"$1\"" "Dir::State::status \"$1/var/lib/dpkg/status\"" \
            "Dir::Cache::archives \"$new/archives\"" "APT::Architectures \"$(dpkg --print-architecture)\"" \
            'Dir::Etc::trusted "/etc/apt/trusted.gpg"' 'Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d"'
        network
    } >"$new/apt.conf"
    shift
    APT_CONFIG=$new/apt.conf apt-get -q -q "$@" >"$new/log" 2>&1 || {
        cat "$new/log" >&2
        return 1
    }
    rm "$new/apt.conf"
}

# In a mount namespace of its own: what a guest sees of the cache. Archives of apt's are an overlay: what it writes
# there is gone with the namespace. Sets $archives.
mounts='
archives=$guest/var/cache/apt/archives
if [ -e "$from/archives" ]; then
    mount -t tmpfs tmpfs "$archives"
    mkdir "$archives/upper" "$archives/work"
    mount -t overlay -o "lowerdir=$from/archives,upperdir=$archives/upper,workdir=$archives/work" \
        overlay "$archives"
fi
mount --bind "$from/srv" "$guest/srv"
mount -o remount,bind,ro "$guest/srv"
'

# run_in CACHE GUEST COMMAND...: the shell stays as process 1, so the command is an ordinary process.
# run_in_mount: the guest's root is a mount of its own, which rpm's unshare plugin wants.
run_in_exec='' run_in_mount=''
run_in() {
    from=$1 guest=$2
    shift 2
    $run_in_exec unshare --mount --pid --fork --kill-child sh -c '
        set -e
        from=$1 guest=$2 mount=$3
        shift 3
        if [ -n "$mount" ]; then mount --rbind "$guest" "$guest"; fi
        mount -t proc proc "$guest/proc"
        '"$mounts"'
        set +e
        chroot "$guest" /usr/bin/env -i HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
        exit $?
    ' sh "$from" "$guest" "$run_in_mount" "$@"
}

# The verb `run`: [--env NAME=VALUE]... DIR [--] COMMAND [ARG...]
run() {
    variables=
    while [ $# -ge 2 ] && [ "$1" = --env ]; do
        case $2 in *[!A-Za-z0-9_=./:,+-]*) fail "--env: plain values only" ;; esac
        variables="$variables $2"
        shift 2
    done
    [ $# -ge 2 ] || usage
    guest=$(cd "$1" && pwd -P)
    shift
    if [ "$1" = -- ]; then shift; fi
    is_complete || build >&2
    run_in_exec=exec # whoever ends this process ends the guest's
    run_in "$store" "$guest" $variables "$@"
}

# The verb `mounts`: DIR
mounts() {
    [ $# -eq 1 ] || usage
    is_complete || build >&2
    from=$store guest=$(cd "$1" && pwd -P)
    eval "$mounts"
}

# An empty directory, made if need be.
take_directory() {
    mkdir -p "$1"
    [ -z "$(ls -A "$1")" ] || fail "$1 is not empty"
}

restore() {
    is_complete || build >&2
    take_directory "$1"
    unpack "$store/base.tar" "$1"
}

many() { # N DIR IMAGE
    for number in $(seq "$1"); do
        take_directory "$2/g$number"
    done
    # One half in the background: unpacking keeps one processor busy.
    every_second "$1" "$2" "$3" 2 &
    every_second "$1" "$2" "$3" 1
    wait $!
}

every_second() { # N DIR IMAGE FIRST
    for number in $(seq "$4" 2 "$1"); do
        unpack "$store/$3.tar" "$2/g$number"
        "$here/drift" "$2/g$number" "$number" >&2
    done
}
