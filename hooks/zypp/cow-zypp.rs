//! libzypp's commit plugin: zypper runs one rpm for each package, and all of them are one transaction.
//!
//! libzypp speaks frames on standard input and waits for an answer to each: a line with a command, headers, a blank
//! line, a body and a NUL byte. Standard error goes to zypper's log. Whatever happens here, zypper goes on.

use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cow_hooks::hook;
use cow_hooks::hook::paths::{self, Called};
use cow_hooks::package::Managers;
use cow_hooks::report::Reason;

/// libzypp kills a plugin that has not answered after 30 seconds; one that has it lets run on.
const PATIENCE: Duration = Duration::from_secs(20);

/// No command is longer.
const LONGEST: usize = 64;

/// What zypper says of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Begins,
    Ended,
}

/// Listens to libzypp until it says no more.
pub fn main() -> ExitCode {
    hook::log();
    let mut settling = None;
    converse(io::stdin().lock(), io::stdout().lock(), |event| match event {
        _ if hook::is_off() => {}
        Event::Begins => called(|called, _| called.join()),
        Event::Ended => {
            let (done, is_done) = mpsc::channel();
            settling = Some(thread::spawn(move || {
                called(|called, manager| called.leave(manager));
                let _ = done.send(());
            }));
            let _ = is_done.recv_timeout(PATIENCE);
        }
    });
    // zypper does not wait for this.
    settling.map(thread::JoinHandle::join);
    ExitCode::SUCCESS
}

fn called(work: impl FnOnce(Called<'_>, &Managers<'_>)) {
    // libzypp calls no plugins for another root.
    if let Err(e) = paths::called("zypper", hook::policy_for_log, work) {
        log::warn!("{}", Reason(e));
    }
}

/// Answers all that libzypp says, and tells what it comes to. A run that has begun ends with the input at the latest.
pub(super) fn converse(mut input: impl BufRead, mut output: impl Write, mut tell: impl FnMut(Event)) {
    let mut is_open = false;
    while let Some(command) = next_command(&mut input).unwrap_or_default() {
        let answer = match &*command {
            b"PLUGINBEGIN" | b"PLUGINEND" | b"_DISCONNECT" => "ACK",
            b"COMMITBEGIN" => {
                is_open = true;
                tell(Event::Begins);
                "ACK"
            }
            b"COMMITEND" => {
                if std::mem::take(&mut is_open) {
                    tell(Event::Ended);
                }
                "ACK"
            }
            _ => "_ENOMETHOD",
        };
        // Who does not listen any more may still have to be told of.
        let _ = write!(output, "{answer}\n\n\0").and_then(|()| output.flush());
        if &*command == b"_DISCONNECT" {
            break;
        }
    }
    if is_open {
        tell(Event::Ended);
    }
}

/// The command of the next frame, none where there is no whole one. Headers and body are passed over.
fn next_command(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut command = Vec::new();
    let mut is_whole = false;
    for byte in input.by_ref().bytes() {
        match byte? {
            0 => return Ok(Some(command)),
            // Line ends may stand between frames.
            b'\n' => is_whole |= !command.is_empty(),
            byte if !is_whole && command.len() < LONGEST => command.push(byte),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// What is answered, and told.
    fn conversation(input: &[u8]) -> (String, Vec<Event>) {
        let (mut output, mut events) = (Vec::new(), Vec::new());
        converse(input, &mut output, |event| events.push(event));
        (String::from_utf8(output).unwrap().replace("\n\n\0", " "), events)
    }

    #[test]
    fn each_frame_is_answered() {
        let input = b"PLUGINBEGIN\nuserdata:x\n\n\0COMMITBEGIN\n\n{\"TransactionStepList\":[]}\n\0\
            COMMITEND\n\n{}\0PLUGINEND\n\n\0_DISCONNECT\n\n\0";
        let (answers, events) = conversation(input);
        assert_eq!(answers, "ACK ACK ACK ACK ACK ");
        assert_eq!(events, [Event::Begins, Event::Ended]);
    }

    #[test]
    fn a_run_ends_once_even_if_nobody_says_so() {
        for end in ["", "_DISCONNECT\n\n\0", "COMMITEND\n\n\0COMMITEND\n\n\0", "COMMITEND\n\nno end"] {
            let (_, events) = conversation(format!("COMMITBEGIN\n\n\0{end}").as_bytes());
            assert_eq!(events, [Event::Begins, Event::Ended], "{end}");
        }
    }

    #[test]
    fn what_is_unknown_or_not_whole_means_nothing() {
        let long = format!("{}\n\n\0", "COMMITBEGIN".repeat(1000));
        for (input, answers) in [
            ("", ""),
            ("COMMITBEGIN\n\n", ""),
            ("COMMITEND\n\n\0", "ACK "),
            ("\0\0", "_ENOMETHOD _ENOMETHOD "),
            ("COMMITBEGIN \n\n\0", "_ENOMETHOD "),
            ("X\nCOMMITBEGIN\n\nCOMMITBEGIN\n\0", "_ENOMETHOD "),
            ("_DISCONNECT\n\n\0COMMITBEGIN\n\n\0", "ACK "),
            (&long, "_ENOMETHOD "),
        ] {
            assert_eq!(conversation(input.as_bytes()), (answers.to_owned(), Vec::new()), "{input:?}");
        }
    }

    #[test]
    fn frames_may_come_in_pieces() {
        let whole = b"\nCOMMITBEGIN\nkey:value\n\nbody\0\nCOMMITEND\n\n\0";
        for at in 0..whole.len() {
            let (first, second) = whole.split_at(at);
            let mut events = Vec::new();
            converse(BufReader::new(first.chain(second)), io::sink(), |event| events.push(event));
            assert_eq!(events, [Event::Begins, Event::Ended], "{at}");
        }
    }
}
