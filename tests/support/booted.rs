//! A guest of the tests that has been booted in a container, with the container's own defaults.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::bed::{Running, start, wait_for};
use super::pair::support;
use super::{ended, text};

/// A kind of container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// `systemd-nspawn` with its default filter of system calls.
    Nspawn,
    /// LXC, privileged, with the filter of its `common.conf`.
    Lxc,
}

/// A booted guest. Dropped, by a panic too, all its processes are killed.
///
/// Its commands are run by a service of its own: what a command may do is what the container lets its services do.
pub struct Booted {
    root: PathBuf,
    cgroup: PathBuf,
    container: Running,
    /// Commands so far.
    count: AtomicU32,
}

/// Runs `$2` below the control group `$3` in a container of the kind `$1`, with namespaces of its own: they, and all
/// processes in them, end with it. `$4` mounts what the guest sees of the cache. The network is none, so that services do not listen on this machine.
const BOOT: &str = r#"
echo $$ >"$3/cgroup.procs" &&
exec unshare --mount --propagation private --pid --fork --kill-child --cgroup --net --mount-proc sh -ec '
# The filesystems of other tests would live on here. What is mounted inside of another goes first.
awk -v root="$2/" "index(\$2, \"/var/tmp/\") == 1 && index(root, \$2 \"/\") != 1 { print \$2 }" /proc/self/mounts |
    tac | xargs -r umount --quiet --lazy
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
"$3" mounts "$2"
case $1 in
nspawn)
    exec systemd-nspawn --quiet --boot --console=pipe --register=no --keep-unit --machine=guest --directory="$2"
    ;;
lxc)
    mkdir /run/guest
    cat >/run/guest/config <<END
lxc.include = /usr/share/lxc/config/common.conf
lxc.rootfs.path = dir:$2
lxc.uts.name = guest
lxc.init.cmd = /usr/lib/systemd/systemd
lxc.net.0.type = empty
END
    exec lxc-start --foreground --name guest --lxcpath /run --rcfile /run/guest/config
    ;;
esac' sh "$1" "$2" "$4"
"#;

/// Where the service and the test meet, in the guest.
const DESK: &str = "root/desk";
/// Runs what is on the desk as `N`, and leaves what comes of it as `N.out`, `N.err` and `N.code`.
const SERVICE: &str = r#"[Unit]
Description=Commands of the tests

[Service]
Environment=HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WorkingDirectory=/root
StandardOutput=null
StandardError=null
ExecStart=/bin/sh /root/desk/serve
"#;
const SERVE: &str = r#"mkfifo /root/desk/bell
while read -r number <>/root/desk/bell; do
    (
        /bin/sh "/root/desk/$number" >"/root/desk/$number.out" 2>"/root/desk/$number.err" </dev/null
        echo $? >"/root/desk/$number.code"
    ) &
done
"#;

impl Booted {
    /// Boots the guest at `root` and waits until its services run.
    pub fn new(container: Container, root: &Path) -> Booted {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroups().join(format!("cow-hooks-test-{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        lay_desk(root);
        let kind = match container {
            Container::Nspawn => "nspawn",
            Container::Lxc => "lxc",
        };
        let container = start(
            Command::new("sh")
                .args(["-c", BOOT, "sh", kind])
                .arg(root)
                .arg(&cgroup)
                .arg(support("guests").get_program()),
        );
        let mut booted = Booted { root: root.to_path_buf(), cgroup, container, count: AtomicU32::new(0) };
        let bell = root.join(DESK).join("bell");
        wait_for("the guest to boot", || {
            let ended = booted.container.child.try_wait().unwrap();
            assert_eq!(ended, None, "{}", booted.container.printed());
            bell.exists()
        });
        // It fails where a service did not start, which need not be one of those that matter.
        booted.run("systemctl is-system-running --wait");
        booted
    }

    /// Runs a line of shell in the guest.
    pub fn run(&self, line: &str) -> Output {
        let number = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let desk = |suffix: &str| self.root.join(DESK).join(format!("{number}{suffix}"));
        fs::write(desk(""), line).unwrap();
        fs::write(self.root.join(DESK).join("bell"), format!("{number}\n")).unwrap();
        let mut code = None;
        wait_for(line, || {
            code = fs::read_to_string(desk(".code")).ok().and_then(|code| code.trim().parse::<i32>().ok());
            code.is_some()
        });
        // As the shell has it.
        let code = code.map(|code| if code > 128 { code - 128 } else { code << 8 });
        let read = |suffix| fs::read(desk(suffix)).unwrap();
        let output = Output {
            status: ExitStatus::from_raw(code.unwrap()),
            stdout: read(".out"),
            stderr: read(".err"),
        };
        println!("{}# {line}\n{}", self.root.display(), text(&output));
        output
    }

    #[track_caller]
    pub fn succeed(&self, line: &str) -> String {
        self.exits(0, line)
    }

    #[track_caller]
    pub fn exits(&self, code: i32, line: &str) -> String {
        ended(&self.run(line), code, line)
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        kill(&mut self.container.child);
        // Its processes are gone, or about to be.
        let begun = std::time::Instant::now();
        while !remove(&self.cgroup) && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_dir_all(self.root.join(DESK));
    }
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Removes a control group and those below it.
fn remove(cgroup: &Path) -> bool {
    let removal = Command::new("find")
        .arg(cgroup)
        .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"])
        .stdin(Stdio::null())
        .output();
    removal.is_ok_and(|output| output.status.success())
}

/// The tree of control groups of version 2 of this machine.
fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = mounts.find(|fields| fields[2] == "cgroup2").expect("no control groups of version 2");
    PathBuf::from(found[1])
}

fn lay_desk(root: &Path) {
    let desk = root.join(DESK);
    let _ = fs::remove_dir_all(&desk);
    fs::create_dir_all(&desk).unwrap();
    fs::write(desk.join("serve"), SERVE).unwrap();
    let units = root.join("etc/systemd/system");
    fs::write(units.join("desk.service"), SERVICE).unwrap();
    let wanted = units.join("multi-user.target.wants/desk.service");
    let _ = fs::remove_file(&wanted);
    std::os::unix::fs::symlink("../desk.service", wanted).unwrap();
}
