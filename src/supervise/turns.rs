//! Whose call is answered next.
//!
//! A call may take long: a lock that the caller's own threads hold, a filesystem that a program serves. So no user but root
//! gets all threads. Two calls are answered at once, whoever made them, which is all there is most of the time; of the other
//! threads a user has [`OF_ONE`], all users but root together have [`OF_OTHERS`], and their further calls wait, in a
//! queue of each user's own; the queues take turns. Some threads always remain that receive, so that root never waits for
//! users.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use super::shared::lock;
use crate::sys::seccomp::Call;
use crate::sys::seccomp::inflight::{InFlight, PLACES, SLOTS};

/// Calls that are answered whoever made them.
const OF_ANYBODY: usize = 2;
/// More calls of one user that are answered at a time.
const OF_ONE: usize = 2;
/// More calls of all users but root.
const OF_OTHERS: usize = 4;
const _: () = assert!(OF_ANYBODY + OF_OTHERS + 2 <= SLOTS);

const ROOT: u32 = 0;
/// In the place of a user that is not known: `(uid_t)-1`, which is nobody's number.
const UNKNOWN: u32 = u32::MAX;

/// The right to be answered, which ends with [`Turns::end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// One of those for anybody.
    Anybodys,
    /// Root's: there is no limit but the number of threads.
    Roots,
    /// One of a user's.
    Of(u32),
}

/// What becomes of a call that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is answered now.
    Now(Turn),
    /// It waits.
    Later,
    /// Too many wait: nobody looks at it.
    Never,
}

/// The calls that are being answered, and those that wait.
#[derive(Debug)]
pub struct Turns<'a> {
    calls: &'a InFlight,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    anybodys: usize,
    others: usize,
    of: HashMap<u32, usize>,
    /// Calls that wait, with their places; the user whose turn is next first. No queue is empty.
    waiting: VecDeque<(u32, VecDeque<(Call, usize)>)>,
    free_places: Vec<usize>,
}

impl State {
    /// A turn for a call of `user`, if there is one.
    fn begin(&mut self, user: u32) -> Option<Turn> {
        if self.anybodys < OF_ANYBODY {
            self.anybodys += 1;
            return Some(Turn::Anybodys);
        }
        if user == ROOT {
            return Some(Turn::Roots);
        }
        let of = self.of.get(&user).copied().unwrap_or(0);
        if self.others == OF_OTHERS || of == OF_ONE {
            return None;
        }
        self.others += 1;
        self.of.insert(user, of + 1);
        Some(Turn::Of(user))
    }

    fn end(&mut self, turn: Turn) {
        match turn {
            Turn::Anybodys => self.anybodys -= 1,
            Turn::Roots => {}
            Turn::Of(user) => {
                self.others -= 1;
                match self.of.get_mut(&user) {
                    Some(of) if *of > 1 => *of -= 1,
                    _ => drop(self.of.remove(&user)),
                }
            }
        }
    }

    /// Has a call wait; `false` if there is no place.
    fn wait(&mut self, user: u32, call: Call, calls: &InFlight) -> bool {
        let Some(place) = self.free_places.pop() else { return false };
        calls.wait(place, call.id);
        match self.waiting.iter_mut().find(|(of, _)| *of == user) {
            Some((_, queue)) => queue.push_back((call, place)),
            None => self.waiting.push_back((user, VecDeque::from([(call, place)]))),
        }
        true
    }

    /// The next call of those that wait, if it can have a turn.
    fn next(&mut self) -> Option<(Call, usize, Turn)> {
        for at in 0..self.waiting.len() {
            let user = self.waiting[at].0;
            let Some(turn) = self.begin(user) else { continue };
            let (user, mut queue) = self.waiting.remove(at)?;
            let (call, place) = queue.pop_front()?;
            if !queue.is_empty() {
                self.waiting.push_back((user, queue));
            }
            self.free_places.push(place);
            return Some((call, place, turn));
        }
        None
    }
}

impl<'a> Turns<'a> {
    /// Nothing is answered or waits yet. What waits is noted in `calls`.
    pub fn new(calls: &'a InFlight) -> Turns<'a> {
        let state = State {
            anybodys: 0,
            others: 0,
            of: HashMap::new(),
            waiting: VecDeque::new(),
            free_places: (0..PLACES).collect(),
        };
        Turns { calls, state: Mutex::new(state) }
    }

    /// What becomes of a call that the calling thread has received. Whose it is is asked only if it matters.
    pub fn admit(&self, call: Call, user: impl FnOnce() -> Option<u32>) -> Admitted {
        {
            let mut state = lock(&self.state);
            if state.anybodys < OF_ANYBODY {
                state.anybodys += 1;
                return Admitted::Now(Turn::Anybodys);
            }
        }
        let user = user().unwrap_or(UNKNOWN);
        let mut state = lock(&self.state);
        match state.begin(user) {
            Some(turn) => Admitted::Now(turn),
            // Somebody has a turn, and will take this call over then.
            None if state.wait(user, call, self.calls) => Admitted::Later,
            None => Admitted::Never,
        }
    }

    /// A call was answered. Returns one that waited, for the same thread, which has the slot `slot`.
    pub fn end(&self, turn: Turn, slot: usize) -> Option<(Call, Turn)> {
        let mut state = lock(&self.state);
        state.end(turn);
        let (call, place, turn) = state.next()?;
        self.calls.begin(slot, call.id);
        self.calls.leave(place);
        Some((call, turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: u64) -> Call {
        Call { id, tid: 1, audit: 0, number: 0, arguments: [0; 6] }
    }

    fn admit(turns: &Turns<'_>, id: u64, user: u32) -> Admitted {
        turns.admit(call(id), || Some(user))
    }

    #[test]
    fn two_are_answered_whoever_asks() {
        let calls = InFlight::new().unwrap();
        let turns = Turns::new(&calls);
        for id in 0..2 {
            let admitted = turns.admit(call(id), || panic!("nobody need know"));
            assert_eq!(admitted, Admitted::Now(Turn::Anybodys));
        }
    }

    #[test]
    fn root_never_waits_and_users_take_turns() {
        let calls = InFlight::new().unwrap();
        let turns = Turns::new(&calls);
        let (mut answered, mut id) = (Vec::new(), 0);
        for user in [7, 8, 9] {
            for _ in 0..10 {
                id += 1;
                if let Admitted::Now(turn) = admit(&turns, id, user) {
                    answered.push(turn);
                }
            }
        }
        use Turn::{Anybodys, Of};
        assert_eq!(answered, [Anybodys, Anybodys, Of(7), Of(7), Of(8), Of(8)]);
        assert_eq!(admit(&turns, 100, ROOT), Admitted::Now(Turn::Roots));
        assert_eq!(turns.end(Turn::Roots, 0), None);
        // Each that ends takes over one that waits: 7 and 8 have all they may have, 9 has nothing yet.
        assert_eq!(turns.end(Of(7), 0).map(|(call, turn)| (call.id, turn)), Some((5, Of(7))));
        assert_eq!(turns.end(Of(7), 0).map(|(call, turn)| (call.id, turn)), Some((21, Of(9))));
        assert_eq!(turns.end(Anybodys, 0).map(|(call, turn)| (call.id, turn)), Some((13, Anybodys)));
        let left = calls.left();
        assert!(left.contains(&13) && left.contains(&30), "the guardian would answer them");
    }

    #[test]
    fn all_that_wait_are_answered_in_the_end() {
        let calls = InFlight::new().unwrap();
        let turns = Turns::new(&calls);
        let (mut running, mut done) = (VecDeque::new(), 0);
        for id in 1..=500 {
            match admit(&turns, id, (id % 13) as u32 + 1) {
                Admitted::Now(turn) => running.push_back(turn),
                Admitted::Later => {}
                Admitted::Never => panic!("there is room"),
            }
        }
        while let Some(turn) = running.pop_front() {
            done += 1;
            assert!(running.len() < OF_ANYBODY + OF_OTHERS);
            running.extend(turns.end(turn, 0).map(|(_, turn)| turn));
        }
        assert_eq!(done, 500);
    }

    #[test]
    fn who_comes_when_too_many_wait_is_not_looked_at() {
        let calls = InFlight::new().unwrap();
        let turns = Turns::new(&calls);
        let admitted: Vec<_> = (1..2000).map(|id| admit(&turns, id, 7)).collect();
        assert_eq!(admitted.iter().filter(|admitted| **admitted == Admitted::Later).count(), PLACES);
        assert_eq!(admitted.last(), Some(&Admitted::Never));
        assert_eq!(admit(&turns, 2000, ROOT), Admitted::Now(Turn::Roots));
    }
}
