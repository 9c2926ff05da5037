//! A supervisor grants nothing that the kernel would have refused, and a call that changes nothing detaches nothing: each
//! supervised call, by a user and by root without capabilities, tells what it tells on private files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use super::support::bed::{Bed, FIRST, file, start};
use super::support::{litter, run, seen, set_immutable, text};

const NOBODY: u32 = 65534;

/// The files: owner and mode.
const FILES: [(u32, u32); 6] =
    [(0, 0o600), (0, 0o644), (NOBODY, 0o600), (NOBODY, 0o644), (0, 0o622), (0, 0o664)];
/// One that `nobody` may not read, by its access control list.
const LISTED: usize = 5;

/// Makes each call on a file, and tells what came of it.
const CALLS: &str = r#"
import array, ctypes, fcntl, os, sys
libc = ctypes.CDLL(None, use_errno=True)
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100
directory, who = sys.argv[1:3]
if who == 'nobody':
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
elif who == 'root without capabilities':
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0
for word in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        break
    os.waitpid(child, 0)
else:
    sys.exit()
file = word.split(':')[0]
path = os.path.join(directory, file)
mode, owner, harmless = (int(part) for part in word.split(':')[1:])
group = owner

def tell(what, call, *arguments):
    try:
        call(*arguments)
        told = 'done'
    except OSError as e:
        told = os.strerror(e.errno)
    print(f'{file}: {what}: {told}')

def system(name, *arguments):
    def call():
        ctypes.set_errno(0)
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), 'x')
    return call

def opened(flags):
    def call():
        os.close(os.open(path, flags))
    return call

def attribute(name, value):
    return lambda: os.setxattr(path, name, value)

def flags(change):
    def call():
        descriptor = os.open(path, os.O_RDONLY)
        now = array.array('i', [0])
        try:
            fcntl.ioctl(descriptor, 0x80086601, now, True)
            now[0] ^= change
            fcntl.ioctl(descriptor, 0x40086602, now)
        finally:
            os.close(descriptor)
    return call

def by_descriptor(flags, call):
    def called():
        descriptor = os.open(path, flags)
        try:
            call(descriptor)
        finally:
            os.close(descriptor)
    return called

name = path.encode()
omit = b'\0' * 8 + (0x3ffffffe).to_bytes(8, 'little')
# Of these each changes nothing, whoever makes it.
tell('chmod same', os.chmod, path, mode)
tell('fchmod same', by_descriptor(os.O_RDONLY, lambda fd: os.fchmod(fd, mode)))
tell('fchmodat same', system('fchmodat', AT_FDCWD, name, mode, 0))
tell('chown same', os.chown, path, owner, group)
tell('chown user', os.chown, path, owner, -1)
tell('chown group', os.chown, path, -1, group)
tell('fchown same', by_descriptor(os.O_RDONLY, lambda fd: os.fchown(fd, owner, group)))
tell('lchown same', os.lchown, path, owner, group)
tell('fchownat same', by_descriptor(os.O_PATH, lambda fd: system('fchownat', fd, b'', owner, group, AT_EMPTY_PATH)()))
tell('chown none', os.chown, path, -1, -1)
tell('utimensat omit', system('utimensat', AT_FDCWD, name, omit + omit, 0))
tell('setxattr same', attribute('user.plain', b'value'))
tell('fsetxattr same', by_descriptor(os.O_RDONLY, lambda fd: os.setxattr(fd, 'user.plain', b'value')))
# Whoever may set the immutable flag, which a shared file has, wants it to be set.
effective = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff'))
if not int(effective, 16) >> 9 & 1:
    tell('flags same', flags(0))
tell('truncate below nothing', system('truncate', name, ctypes.c_long(-1)))
now = os.stat(path)
tell('times same', lambda: os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns)))
changed = now.st_mtime_ns // 10**9, now.st_mtime_ns % 10**9
changed = b''.join(part.to_bytes(8, 'little') for part in changed)
tell('times same or omit', system('utimensat', AT_FDCWD, name, omit + changed, 0))
tell('times nonsense', system('utimensat', AT_FDCWD, name, omit + b'\0' * 8 + (10**9).to_bytes(8, 'little'), 0))
try:
    LIST = os.getxattr(path, 'system.posix_acl_access')
except OSError:
    def entry(tag, shift):
        return bytes([tag, 0, mode >> shift & 7, 0, 255, 255, 255, 255])
    LIST = b'\2\0\0\0' + entry(1, 6) + entry(4, 3) + entry(32, 0)
    tell('acl none', os.removexattr, path, 'system.posix_acl_access')
tell('acl same', attribute('system.posix_acl_access', LIST))
tell('setxattr there', lambda: os.setxattr(path, 'user.plain', b'other', os.XATTR_CREATE))
tell('setxattr missing', lambda: os.setxattr(path, 'user.none', b'other', os.XATTR_REPLACE))
tell('setxattr nonsense', lambda: os.setxattr(path, 'user.plain', b'other', 8))
tell('setxattr nameless', attribute('', b'other'))
tell('setxattr unknown', attribute('unknown.plain', b'other'))
tell('removexattr missing', os.removexattr, path, 'user.none')
tell('removexattr unknown', os.removexattr, path, 'unknown.plain')
tell('rename nonsense', system('renameat2', AT_FDCWD, name, AT_FDCWD, name + b'.moved', 16))
tell('unlink missing', os.unlink, path + '.none')
tell('rmdir', os.rmdir, path)
if harmless:
    sys.exit()
# Of these the kernel refuses all.
tell('open', opened(os.O_RDWR))
tell('open truncate', opened(os.O_RDONLY | os.O_TRUNC))
tell('open unseen', opened(os.O_WRONLY | os.O_NOATIME))
tell('chmod', os.chmod, path, 0o777)
tell('fchmod', by_descriptor(os.O_RDONLY, lambda fd: os.fchmod(fd, 0o777)))
tell('chown', os.chown, path, 65533, 65533)
tell('chgrp', os.chown, path, -1, 65533)
tell('lchown', os.lchown, path, 65533, -1)
tell('utime', os.utime, path, (1, 1))
tell('trusted', attribute('trusted.x', b'1'))
tell('capabilities', attribute('security.capability', bytes.fromhex('0100000202040000000000000000000000000000')))
ACL = '02000000' '01000600ffffffff' '04000400ffffffff' '20000400ffffffff'
tell('acl', attribute('system.posix_acl_access', bytes.fromhex(ACL)))
tell('remove trusted', os.removexattr, path, 'trusted.x')
tell('remove capabilities', os.removexattr, path, 'security.capability')
tell('flags', flags(0x40))
tell('link', os.link, path, path + '.link')
tell('unlink', os.unlink, path)
tell('rename', os.rename, path, path + '.moved')
tell('rename over', os.rename, '/tmp/cow-none', path)
tell('rename within', os.rename, path, os.path.dirname(path) + '/same')
if mode != 0o622:
    tell('open to write', opened(os.O_WRONLY))
    tell('open to append', opened(os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    tell('truncate', os.truncate, path, 1)
    tell('touch', os.utime, path)
    tell('setxattr', attribute('user.plain', b'other'))
    tell('removexattr', os.removexattr, path, 'user.plain')
"#;

/// Root of a user namespace makes each call on a file of its own, and tells what came of it. The kernel allows all.
const CALLS_IN_NAMESPACE: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
directory = sys.argv[1]
os.setgroups([])
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child:
    os.read(ready[0], 1)
    for file in 'uid_map', 'gid_map':
        with open(f'/proc/{child}/{file}', 'w') as f:
            f.write('0 100000 65536')
    os.write(go[1], b'x')
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert libc.unshare(0x10000000) == 0
os.write(ready[1], b'x')
os.read(go[0], 1)
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
CAPABILITIES = bytes.fromhex('0100000202040000000000000000000000000000')
ACL = bytes.fromhex('02000000' '01000600ffffffff' '04000400ffffffff' '20000400ffffffff')
calls = [
    lambda path: os.close(os.open(path, os.O_RDWR)),
    lambda path: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
    lambda path: os.close(os.open(path, os.O_WRONLY | os.O_NOATIME)),
    lambda path: os.chmod(path, 0o4711),
    lambda path: os.chown(path, 7, 8),
    lambda path: os.utime(path, (1, 1)),
    lambda path: os.utime(path),
    lambda path: os.setxattr(path, 'user.x', b'1'),
    lambda path: os.setxattr(path, 'security.capability', CAPABILITIES),
    lambda path: os.setxattr(path, 'system.posix_acl_access', ACL),
    lambda path: os.link(path, path + '.link'),
    lambda path: os.rename(path, path + '.moved'),
    os.unlink,
]
for number, call in enumerate(calls):
    try:
        call(os.path.join(directory, f'{number:04}'))
        print(number, 'done')
    except OSError as e:
        print(number, os.strerror(e.errno))
"#;

/// Goes to a file by ways that the kernel closes to a user, and by ways that it does not; tells what came of each call.
const WAYS: &str = r#"
import os, sys
directory, closed, open_ = sys.argv[1:4]
os.chdir(directory)
root = os.getpid()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
inside = os.open('.', os.O_PATH)

def tell(what, call, *arguments):
    try:
        call(*arguments)
        told = 'done'
    except OSError as e:
        told = os.strerror(e.errno)
    print(f'{what}: {told}'.replace(directory, '').replace(str(root), 'ROOT'))

def attempt(way):
    tell(f'{way} open', lambda: os.close(os.open(way, os.O_RDWR)))
    tell(f'{way} truncate', os.truncate, way, 1)
    tell(f'{way} chmod same', os.chmod, way, 0o644)
    tell(f'{way} chmod', os.chmod, way, 0o600)
    tell(f'{way} chown same', os.chown, way, 65534, 65534)
    tell(f'{way} touch', os.utime, way)
    tell(f'{way} setxattr', os.setxattr, way, 'user.x', b'1')

for way in (f'closed/{closed}', f'./closed/../{closed}', f'{directory}/closed/{closed}', f'behind/{closed}',
            f'/proc/{root}/cwd/{closed}', f'/proc/{root}/root{directory}/{closed}'):
    attempt(way)
    tell(f'{way} unlink', os.unlink, way)
    tell(f'{way} rmdir', os.rmdir, way)
    tell(f'{way} rename', os.rename, way, 'common/new')
    tell(f'{way} rename here', os.rename, f'common/{closed}', way)
    tell(f'{way} link', os.link, way, 'common/new')
attempt('common/link')
for way in f'{directory}/{open_}', f'/proc/self/cwd/{open_}', f'/proc/self/fd/{inside}/{open_}', 'common/own':
    attempt(way)
"#;

/// Shared files in the first guest, and private ones like them in `private`.
fn bed() -> Bed {
    let bed = Bed::new(FILES.len());
    let private = bed.first("private");
    fs::create_dir(&private).unwrap();
    for (number, (owner, mode)) in FILES.into_iter().enumerate() {
        let shared = bed.second(file(number));
        set_immutable(&shared, false);
        run(Command::new("setfattr").args(["-n", "user.plain", "-v", "value"]).arg(&shared));
        if number == LISTED {
            run(Command::new("setfacl").args(["-m", "u:nobody:---"]).arg(&shared));
        }
        chown(&shared, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(mode)).unwrap();
        run(Command::new("cp").arg("-a").arg(&shared).arg(private.join(file(number))));
        set_immutable(&shared, true);
    }
    // Root without capabilities is not to own the directories.
    chown(bed.first(""), Some(1), Some(1)).unwrap();
    chown(&private, Some(1), Some(1)).unwrap();
    bed
}

/// Makes the calls on shared files and on private ones; what differs.
fn differences(bed: &Bed, who: &str, is_harmless: impl Fn(u32) -> bool) -> Vec<String> {
    let words: Vec<String> = FILES
        .into_iter()
        .enumerate()
        .map(|(number, (owner, mode))| {
            format!("{}:{mode}:{owner}:{}", file(number), u32::from(is_harmless(owner)))
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let before: Vec<_> = (0..FILES.len()).map(|number| seen(&bed.second(file(number)))).collect();
    let told = |dir: &str, run: &[&str]| {
        let output =
            start(&mut bed.command(&[run, &["python3", "-c", CALLS, dir, who], &words].concat())).done();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let private = told(&format!("{FIRST}/private"), &[]);
    let shared = told(FIRST, &[super::support::program("cow-run")]);
    println!("{who}: {} calls", shared.lines().count());
    assert_eq!(private.lines().count(), shared.lines().count());
    let both = private.lines().zip(shared.lines()).filter(|(private, shared)| private != shared);
    let mut wrong: Vec<String> =
        both.map(|(private, shared)| format!("{who}: {private}, but {shared}")).collect();
    for (number, before) in before.iter().enumerate() {
        let name = file(number);
        if bed.is_private(&name) {
            wrong.push(format!("{who}: {name} is not shared any more"));
        }
        if *before != seen(&bed.second(&name)) {
            wrong.push(format!("{who}: {name} has changed"));
        }
    }
    wrong
}

#[test]
#[ignore = "needs root"]
fn privileged_nobody_gets_more_of_a_shared_file_than_of_a_private_one() {
    let bed = bed();
    let mut wrong = differences(&bed, "nobody", |owner| owner == NOBODY);
    wrong.extend(differences(&bed, "root without capabilities", |owner| owner == 0));
    // Root may do all, and these calls change nothing.
    wrong.extend(differences(&bed, "root", |_| true));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    bed.assert_over();
    assert!(litter(bed.filesystem.path()).is_empty());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_shared_file_is_left_alone_by_whom_the_kernel_keeps_from_the_way_to_it() {
    let bed = Bed::new(2);
    let (closed, open) = (file(0), file(1));
    let private = bed.first("private");
    fs::create_dir(&private).unwrap();
    for name in [&closed, &open] {
        let shared = bed.second(name);
        set_immutable(&shared, false);
        chown(&shared, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o644)).unwrap();
        run(Command::new("cp").arg("-a").arg(&shared).arg(private.join(name)));
    }
    for dir in [bed.first(""), private] {
        for (name, mode) in [("closed", 0o700), ("common", 0o1777)] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
            fs::hard_link(dir.join(&closed), dir.join(name).join(&closed)).unwrap();
        }
        symlink("closed", dir.join("behind")).unwrap();
        // The kernel may let its owner alone follow one that is in a directory of many.
        for (name, target, owner) in [("link", &closed, 1), ("own", &open, NOBODY)] {
            let link = dir.join("common").join(name);
            symlink(Path::new("..").join(target), &link).unwrap();
            lchown(link, Some(owner), Some(owner)).unwrap();
        }
    }
    for name in [&closed, &open] {
        set_immutable(&bed.second(name), true);
    }
    let told = |dir: &str, run: &[&str]| {
        let words = [run, &["python3", "-c", WAYS, dir, &closed, &open]].concat();
        let output = start(&mut bed.command(&words)).done();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let before = seen(&bed.second(&closed));
    let private = told(&format!("{FIRST}/private"), &[]);
    let shared = told(FIRST, &[super::support::program("cow-run")]);
    assert_eq!(private, shared);
    println!("{} calls", shared.lines().count());
    let is_open = fs::read_to_string("/proc/sys/fs/protected_symlinks").unwrap().trim() == "0";
    assert!(is_open || !bed.is_private(&closed));
    assert!(bed.is_private(&open));
    assert_eq!(before, seen(&bed.second(&closed)));
    bed.assert_over();
}

#[test]
#[ignore = "needs root"]
fn privileged_root_of_a_user_namespace_gets_its_files_as_if_they_were_private() {
    const CALLS: usize = 13;
    const OWNER: u32 = 100_005;
    let bed = Bed::new(CALLS);
    let private = bed.first("private");
    fs::create_dir(&private).unwrap();
    for number in 0..CALLS {
        let shared = bed.second(file(number));
        set_immutable(&shared, false);
        chown(&shared, Some(OWNER), Some(OWNER)).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o600)).unwrap();
        run(Command::new("cp").arg("-a").arg(&shared).arg(private.join(format!("{number:04}"))));
        run(Command::new("mv").arg(bed.first(file(number))).arg(bed.first(format!("{number:04}"))));
        set_immutable(&shared, true);
    }
    for dir in [bed.first(""), private] {
        chown(dir, Some(OWNER), Some(OWNER)).unwrap();
    }
    let before: Vec<_> = (0..CALLS).map(|number| seen(&bed.second(file(number)))).collect();
    let told = |dir: &str, run: &[&str]| {
        let output =
            start(&mut bed.command(&[run, &["python3", "-c", CALLS_IN_NAMESPACE, dir]].concat())).done();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let private = told(&format!("{FIRST}/private"), &[]);
    assert_eq!(private.lines().filter(|line| line.ends_with(" done")).count(), CALLS, "{private}");
    assert_eq!(private, told(FIRST, &[super::support::program("cow-run")]));
    for (number, before) in before.iter().enumerate() {
        assert_eq!(*before, seen(&bed.second(file(number))), "{number}");
    }
    bed.assert_over();
}
