//! Work spread over threads.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sys::seccomp::filter;

/// As many threads as there are processors; one if a filter forbids threads, or what counts processors.
pub fn processors() -> usize {
    let needed = [libc::SYS_clone3, libc::SYS_statx, libc::SYS_sched_getaffinity];
    if !needed.into_iter().all(filter::permits) {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Applies `work` to every item, on at most so many threads; results keep the items' order.
pub fn map<T: Sync, R: Send>(threads: usize, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads.min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let mut results: Vec<(usize, R)> = on_each(threads, run).into_iter().flatten().collect();
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Does `work` on so many threads at the same time; the calling one is the first. What each of them returns.
///
/// A panic of any of them goes on in the calling thread.
pub fn on_each<R: Send>(threads: usize, work: impl Fn() -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut results = vec![work()];
        for other in others {
            match other.join() {
                Ok(result) => results.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u32> = (0..1000).collect();
        assert_eq!(super::map(2, &items, |n| n * 2), items.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(super::map(2, &[] as &[u32], |n| *n).is_empty());
    }
}
