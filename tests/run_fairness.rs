//! One supervised user cannot make the others wait.

use super::support::bed::Bed;
use super::support::text;

/// 64 threads of `nobody` open a file that they hold locked and that looks as in a window; root then makes ten calls.
const CROWD: &str = r#"
import fcntl, os, threading, time
THREADS, CALLS = 64, 10
for name in 'own', 'roots':
    open(name, 'w').close()
    os.link(name, name + '2')
os.chown('own', 65534, 65534)
ready, begun = os.pipe()
end, done = os.pipe()
child = os.fork()
if child == 0:
    os.close(done)
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    held = os.open('own', os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    opened = [0] * THREADS
    def attack(number):
        while True:
            os.close(os.open('own', os.O_WRONLY))
            opened[number] += 1
    for number in range(THREADS):
        threading.Thread(target=attack, args=(number,), daemon=True).start()
    time.sleep(1)
    os.write(begun, b'x')
    os.read(end, 1)
    time.sleep(1)
    print(sum(opened), 'calls of nobody', flush=True)
    os._exit(0)
os.read(ready, 1)
before = time.monotonic()
for call in range(CALLS):
    os.close(os.open('roots', os.O_WRONLY))
print(round(time.monotonic() - before, 2), flush=True)
os.close(done)
os.waitpid(child, 0)
"#;

#[test]
#[ignore = "needs root"]
fn privileged_a_crowd_of_one_user_does_not_keep_root_waiting() {
    let bed = Bed::new(1);
    let output = bed.ran(&["python3", "-c", CROWD]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("ten calls of root, in seconds: {said}");
    let seconds: f64 = said.lines().next().unwrap().parse().unwrap();
    assert!(seconds < 5.0, "{said}");
    // The others are served, too.
    assert!(!said.contains("\n0 calls"), "{said}");
    bed.assert_over();
    bed.assert_clean();
}
