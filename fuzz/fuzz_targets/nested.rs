//! Hostile first-stage tables: random bits, references to themselves, tables over pages that the parent does not
//! map or maps read-only, changes under the walk. Two out of five inputs change their tables while they are walked, in
//! another process's memory and in our own: nothing but faults may come of it, never a byte outside of what the parent
//! allows, after a bounded number of accesses. The others are judged by the walker of the tests of `ioasid-iommu`:
//! result, fault, bytes and bits.
//!
//! An input is a byte for the kind, one for the number of words, 8 of a seed, the words that the guest writes
//! (table, index, 8 bytes), and 8 bytes for each step.
#![no_main]

#[path = "../../crates/iommu/tests/common/mod.rs"]
mod common;
#[path = "../../crates/iommu/tests/nested_model/model.rs"]
mod model;
#[path = "../../crates/iommu/tests/nested_model/walker.rs"]
mod walker;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use common::{
    Random, contents,
    guest::{BASE, Hook},
    pages, range,
};
use ioasid_core::{AddrRange, Prot, memory::OwnMemory};
use ioasid_iommu::{Invalidate, Stop};
use libfuzzer_sys::fuzz_target;
use model::{Kind, PAGE, PAGES, Run, TABLES};

/// Words that a guest writes, and steps, at most.
const MOST_WORDS: usize = 48;
const MOST_STEPS: usize = 24;
/// Accesses to memory of another process under one guard, at most: an operation of these has up to 4 pages on
/// each side.
const MOST_ACCESSES: u64 = 1000;

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
}

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_at_checked(10) else {
        return;
    };
    let (kind, seed) = (head[0] % 5, word(&head[2..]));
    let count = usize::from(head[1]) % MOST_WORDS;
    let (words, steps) = rest.split_at(rest.len().min(10 * count));
    let words: Vec<_> = words
        .chunks_exact(10)
        .map(|bytes| (bytes[0], bytes[1], word(&bytes[2..])))
        .collect();
    let steps: Vec<_> = steps.chunks_exact(8).take(MOST_STEPS).map(word).collect();
    let place = match kind {
        0 | 4 => Kind::Plain,
        1 => Kind::Caching,
        _ => Kind::Private,
    };
    let mut run = Run::new(place, seed);
    for (table, index, entry) in &words {
        run.put(*table, *index, *entry);
    }
    if kind < 3 {
        for step in steps {
            run.step(step);
        }
    } else {
        change_under_the_walk(&mut run, seed, &words, &steps);
    }
});

/// Takes some pages of the parent away, wholly or for writes: the pages that no device may write, by their place in
/// the memory.
fn restrict_parent(run: &Run, seed: u64) -> BTreeSet<u64> {
    let mut protected = BTreeSet::new();
    let mut random = Random(seed | 1);
    for page in 0..PAGES {
        let gpa = BASE + page * PAGE;
        match random.below(4) {
            0 => drop(run.guest.parent.unmap(range(gpa, PAGE))),
            1 => run.guest.remap_parent(gpa, Prot::READ),
            _ => continue,
        }
        // The guest itself writes its tables.
        if page >= TABLES {
            protected.insert(run.guest.offset(gpa));
        }
    }
    protected
}

/// Writes one word after the other, again and again.
struct Writer {
    memory: Arc<OwnMemory>,
    words: Vec<(usize, u64)>,
    next: AtomicUsize,
}

impl Writer {
    fn write(&self) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some((offset, word)) = self.words.get(number % self.words.len().max(1)) {
            self.memory.write(*offset, &word.to_le_bytes());
        }
    }
}

fn change_under_the_walk(run: &mut Run, seed: u64, words: &[(u8, u8, u64)], steps: &[u64]) {
    let outside = pages(&run.iommu, 4 * PAGE as usize);
    let protected = restrict_parent(run, seed);
    let page_at = |offset: u64| {
        let mut page = vec![0; PAGE as usize];
        run.guest.memory.read(offset as usize, &mut page);
        page
    };
    let before: Vec<_> = protected.iter().map(|at| (*at, page_at(*at))).collect();
    let place = |table: u8, index: u8| {
        let gpa = BASE + u64::from(table) % TABLES * PAGE + 8 * u64::from(index);
        run.guest.offset(gpa) as usize
    };
    let mut random = Random(!seed | 1);
    let other = words.iter().map(|(table, index, _)| {
        let entry = model::random_entry(&mut random);
        (place(*table, *index), entry)
    });
    let other: Vec<_> = other.collect();
    let words = words
        .iter()
        .map(|(table, index, entry)| (place(*table, *index), *entry));
    let writer = Arc::new(Writer {
        memory: Arc::clone(&run.guest.memory),
        words: words.chain(other).collect(),
        next: AtomicUsize::new(0),
    });
    match run.guest.private.clone() {
        Some(private) => {
            let hook: Hook = {
                let writer = Arc::clone(&writer);
                Arc::new(move |_, _| {
                    writer.write();
                    Ok(())
                })
            };
            private.set_hook(Some(hook));
            accesses(run, steps);
            private.set_hook(None);
        }
        None => {
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        writer.write();
                    }
                });
                accesses(run, steps);
                done.store(true, Ordering::Relaxed);
            });
        }
    }
    for (offset, before) in before {
        let mut page = vec![0; PAGE as usize];
        run.guest.memory.read(offset as usize, &mut page);
        assert!(page == before, "a page that the parent protects");
    }
    let outside = contents(&outside, 4 * PAGE as usize);
    assert!(
        outside.iter().all(|byte| *byte == 0),
        "outside of the parent"
    );
}

/// Accesses of every kind, whatever becomes of them.
fn accesses(run: &mut Run, steps: &[u64]) {
    for step in steps {
        run.random = Random(step | 1);
        let (first, second) = (run.random_iova(), run.random_iova());
        let len = 1 + run.random.below(9000);
        let which = run.random.below(6);
        run.port.set_privileged(run.random.below(2) == 0);
        let blocking = run.guest.private.is_some();
        let count = |run: &Run| run.guest.private.as_ref().map_or(0, |p| p.accesses());
        // As often as an engine would try before it looks for other work.
        for _ in 0..3 {
            let before = count(run);
            let mut guard = match blocking {
                true => run.port.enter_blocking(run.pasid),
                false => run.port.enter(run.pasid),
            };
            let mut buffer = vec![0xa5; len as usize];
            let transfer = match which {
                0 => guard.read(first, &mut buffer),
                1 => guard.write(first, &buffer),
                2 => guard.fill(first, !0, len),
                3 => guard.compare(first, second, len).0,
                4 => guard.copy(first, second, len),
                _ => guard.copy(first, first.wrapping_sub(64), len),
            };
            drop(guard);
            assert!(transfer.done <= len);
            assert!(count(run) - before <= MOST_ACCESSES, "without an end");
            match transfer.stop {
                None => break,
                Some(Stop::Budget | Stop::Fault(_)) => {}
                Some(stop) => panic!("{stop:?}"),
            }
        }
        if step % 4 == 0 {
            run.nested.invalidate(AddrRange::ALL, Invalidate::Tables);
        }
    }
}
