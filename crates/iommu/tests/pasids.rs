//! The PASID pool: quotas, and no reuse before the last job is done.
#![cfg(not(ioasid_shuttle))]

use ioasid_core::Pasid;
use ioasid_iommu::{PasidError, PasidPool, PasidQuota};

#[test]
fn a_pasid_is_not_handed_out_again_while_a_job_uses_it() {
    let pool = PasidPool::new();
    let quota = PasidQuota::unlimited();
    let handle = pool.alloc(&quota).unwrap();
    let number = handle.pasid();
    let (job, second) = (handle.use_token(), handle.use_token());
    drop(handle);
    assert_eq!((pool.held(), pool.pending()), (0, 1));
    let other = pool.alloc(&quota).unwrap();
    assert_ne!(other.pasid(), number);
    drop(job);
    assert_ne!(pool.alloc(&quota).unwrap().pasid(), number, "one job left");
    drop(second);
    assert_eq!(pool.pending(), 0);
    assert_eq!(pool.alloc(&quota).unwrap().pasid(), number);
}

#[test]
fn a_quota_counts_what_is_pending_and_does_not_touch_others() {
    let pool = PasidPool::new();
    let (small, other) = (PasidQuota::new(2), PasidQuota::new(2));
    let first = pool.alloc(&small).unwrap();
    let _second = pool.alloc(&small).unwrap();
    let over = Err(PasidError::OverQuota { limit: 2 });
    assert_eq!(pool.alloc(&small).map(drop), over);
    let job = first.use_token();
    drop(first);
    assert_eq!(pool.alloc(&small).map(drop), over);
    assert!(pool.alloc(&other).is_ok());
    drop(job);
    assert!(pool.alloc(&small).is_ok());
    assert_eq!(other.used(), 0);
}

#[test]
fn every_pasid_from_1_to_the_last_is_given_once() {
    let pool = PasidPool::new();
    let quota = PasidQuota::unlimited();
    let mut handles = Vec::new();
    loop {
        match pool.alloc(&quota) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                let last = Pasid::LIMIT - 1;
                assert_eq!(error, PasidError::Exhausted { last });
                break;
            }
        }
    }
    let numbers: Vec<u32> = handles.iter().map(|handle| handle.pasid().get()).collect();
    assert!(numbers.iter().copied().eq(1..Pasid::LIMIT));
    handles.truncate(5);
    assert_eq!((pool.held(), pool.pending()), (5, 0));
    assert_eq!(quota.used(), 5);
}
