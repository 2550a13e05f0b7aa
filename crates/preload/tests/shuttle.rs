//! No sleep is missed between a session and an agent, whatever the order of their steps.
#![cfg(ioasid_shuttle)]
#![allow(missing_docs)]

use std::sync::Arc;

use ioasid_preload::errands::{Errand, Errands, Futex, Outcome};
use shuttle::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

/// A futex whose sleep ends by a wake and by nothing else: a wake that is missed is a deadlock.
#[derive(Default)]
struct Model {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Futex for Model {
    fn wait(&self, word: &AtomicU32, value: u32) {
        let held = self.lock.lock().unwrap();
        if word.load(Ordering::SeqCst) == value {
            drop(self.changed.wait(held).unwrap());
        }
    }

    fn wake(&self, _: &AtomicU32) {
        let _held = self.lock.lock().unwrap();
        self.changed.notify_all();
    }
}

const QUESTIONS: u32 = 3;

#[test]
fn each_question_is_answered_once_and_nobody_sleeps_for_ever() {
    let schedules = std::env::var("IOASID_SHUTTLE").ok();
    let schedules = schedules.and_then(|n| n.parse().ok()).unwrap_or(1000);
    shuttle::check_random(
        || {
            let page = Arc::new(Errands::default());
            let futex = Arc::new(Model::default());
            let agent = {
                let (page, futex) = (Arc::clone(&page), Arc::clone(&futex));
                thread::spawn(move || {
                    let (mut last, mut copies) = (0, 0);
                    while last != QUESTIONS {
                        last = page.serve(last, &*futex, |_, _, len| {
                            copies += 1;
                            len
                        });
                    }
                    copies
                })
            };
            for question in 1..=QUESTIONS {
                let mut errands = [Errand {
                    dst: 1,
                    src: 2,
                    len: question.into(),
                    done: 0,
                }];
                let asked = page.ask(&errands, &*futex);
                while page.answer(asked, &mut errands, &*futex) != Outcome::Answered {}
                assert_eq!(errands[0].done, u64::from(question));
            }
            assert_eq!(agent.join().unwrap(), QUESTIONS);
        },
        schedules,
    );
}
