//! The ledger, which root of the guest may have edited.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::sound::{file_of, is_message};
use crate::ledger::{Ledger, rows as row};

/// The columns of all tables, as the readers of rows ask for them.
const COLUMNS: [&str; 16] = [
    "id",
    "state",
    "dir",
    "name",
    "dev",
    "ino",
    "handle",
    "immutable",
    "size",
    "beside",
    "keep",
    "copy_ino",
    "copy_ctime_s",
    "copy_ctime_ns",
    "owner",
    "started",
];

/// A whole database. It is opened to be read only, as it is to show it.
pub fn file(data: &[u8]) {
    let file = file_of(data);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let read = || {
        let ledger = Ledger::open_to_read(&path)?;
        ledger.entries()?;
        ledger.windows()?;
        ledger.last_run()?;
        ledger.len()
    };
    if let Err(e) = read() {
        is_message(e);
    }
}

/// Values of any type in all columns of a row.
pub fn rows(data: &[u8]) {
    thread_local! {
        static MEMORY: RefCell<Connection> = RefCell::new(Connection::open_in_memory().unwrap());
    }
    let mut rest = data;
    let values: Vec<Value> = COLUMNS.iter().map(|_| value(&mut rest)).collect();
    let columns: Vec<String> =
        COLUMNS.iter().enumerate().map(|(at, name)| format!("?{} AS {name}", at + 1)).collect();
    MEMORY.with_borrow(|db| {
        let mut select = db.prepare_cached(&format!("SELECT {}", columns.join(", "))).unwrap();
        let read = select.query_row(params_from_iter(values), |found| {
            row::read_place(found)?;
            row::read_inode(found)?;
            row::read_entry(found)
        });
        match read {
            Ok(entry) => {
                // Names in directories of ours, whatever is in the row.
                for name in [entry.temporary(), entry.stashed()] {
                    assert!(!name.is_empty() && !name.as_encoded_bytes().contains(&b'/'));
                }
            }
            Err(e) => is_message(e),
        }
    });
}

/// Takes a value: a byte for its type and length, then what it is.
fn value(rest: &mut &[u8]) -> Value {
    const WORDS: [&str; 4] = ["detaching", "detached", "restoring", "dropping"];
    let Some((&kind, tail)) = rest.split_first() else { return Value::Null };
    let (taken, tail) = tail.split_at(tail.len().min(usize::from(kind >> 3)));
    *rest = tail;
    match kind & 7 {
        0 => Value::Null,
        1 => Value::Text(WORDS[usize::from(kind >> 3 & 3)].to_owned()),
        2 => Value::Text(String::from_utf8_lossy(taken).into_owned()),
        3 => Value::Real(taken.iter().fold(0.5, |number, &byte| number * 256.0 + f64::from(byte))),
        4 | 5 => Value::Integer(taken.iter().fold(0, |number, &byte| number << 8 | i64::from(byte))),
        _ => Value::Blob(taken.to_vec()),
    }
}
