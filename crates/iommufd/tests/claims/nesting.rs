//! Nested page tables.

use std::sync::Arc;

use ioasid_iommufd::{
    AllocError, AttachError, Error, HwptAlloc, HwptFlags, Invalidated, ObjectError, Refusal,
    UserArray, UserData, UserDataError, ViommuAlloc,
};

use crate::{backend::*, machine::*};

#[test]
fn a_nested_page_table_uses_its_parent_and_no_other_command_knows_it() {
    let s = setup();
    let context = &s.m.context;
    s.program.put(0x100, &77u32.to_ne_bytes());
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    let ops: Arc<dyn std::any::Any + Send + Sync> = context.hwpt_nested(nested).unwrap();
    assert_eq!(
        ops.downcast_ref::<Nested>().map(|nested| nested.0),
        Some(77)
    );
    assert_eq!(
        context.destroy(s.parent),
        Err(ObjectError::InUse(s.parent).into())
    );
    assert_eq!(s.device.attach(nested), Ok(nested));
    assert_eq!(
        context.destroy(nested),
        Err(ObjectError::InUse(nested).into())
    );
    let unknown = Error::from(ObjectError::Missing(nested));
    assert_eq!(context.hwpt_set_dirty_tracking(nested, true), Err(unknown));
    let on_nested = ViommuAlloc {
        hwpt: nested,
        ..s.viommu_args()
    };
    assert_eq!(context.viommu_alloc(on_nested), Err(unknown));
    let again = s.nested(nested, HwptFlags::NONE);
    assert_eq!(again, Err(AllocError::NotAParent(nested).into()));
    s.device.detach();
    assert_eq!(context.destroy(nested), Ok(()));
    assert_eq!(context.destroy(s.parent), Ok(()));
    let seen = s.toy.seen.lock().unwrap();
    assert_eq!(*seen, [(None, Some(nested)), (None, None)]);
}

#[test]
fn nested_page_tables_are_refused_in_the_kernels_order() {
    let s = setup();
    let context = &s.m.context;
    let dirty = HwptFlags::DIRTY_TRACKING;
    assert_matches!(
        s.nested(s.parent, dirty),
        Err(Error::Alloc(AllocError::FlagsNotSupported(_)))
    );
    let args = HwptAlloc::new(s.device.id(), s.parent);
    assert_matches!(
        context.hwpt_alloc(args),
        Err(Error::Alloc(AllocError::NoData)),
        "without data"
    );
    let plain = context
        .hwpt_alloc(HwptAlloc::new(s.device.id(), s.ioas))
        .unwrap();
    let not_a_parent = Err(AllocError::NotAParent(plain).into());
    assert_eq!(s.nested(plain, HwptFlags::NONE), not_a_parent);
    let short = s.data(2);
    let bad = context.hwpt_alloc_with(args, Some(&short));
    assert_matches!(bad, Err(Error::UserData(UserDataError::Length { .. })));
    let other = UserData::new(&s.program, KIND + 1, 0x100, 4);
    let bad = context.hwpt_alloc_with(args, Some(&other));
    assert_matches!(bad, Err(Error::UserData(UserDataError::WrongType { .. })));
    let outside = UserData::new(&s.program, KIND, u64::MAX, 4);
    let bad = context.hwpt_alloc_with(args, Some(&outside));
    assert_matches!(bad, Err(Error::UserData(UserDataError::Unreadable { .. })));
    let next = s.nested(s.parent, HwptFlags::NONE).unwrap();
    assert_eq!(next.get(), plain.get() + 1, "no id is lost on the way");
}

#[test]
fn what_a_back_end_refuses_leaves_the_old_attachment() {
    let s = setup();
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    s.device.attach(s.parent).unwrap();
    *s.toy.refuses.lock().unwrap() = Some(Refusal::NoMemory);
    let refused = Err(Error::Refused(Refusal::NoMemory));
    assert_eq!(s.device.replace(nested, 0), refused);
    assert_eq!(s.device.attached(None), Some(s.parent));
    assert_eq!(s.device.attach(s.ioas), refused, "no new page table either");
    assert_eq!(s.device.attached(None), Some(s.parent));
    assert_eq!(s.m.domains().len(), 1);
    *s.toy.refuses.lock().unwrap() = None;
    assert_eq!(s.device.replace(nested, 0), Ok(nested));
}

#[test]
fn attach_and_replace_each_need_their_side() {
    let s = setup();
    assert_matches!(
        s.device.replace(s.parent, 0),
        Err(Error::Attach(AttachError::NothingToReplace { .. }))
    );
    assert_matches!(
        s.device.replace(s.ioas, 0),
        Err(Error::Attach(AttachError::NothingToReplace { .. }))
    );
    assert_eq!(s.device.attach_first(s.parent, 0), Ok(s.parent));
    assert_matches!(
        s.device.attach_first(s.parent, 0),
        Err(Error::Attach(AttachError::Attached { .. }))
    );
    assert_matches!(
        s.device.attach_first(s.ioas, 0),
        Err(Error::Attach(AttachError::Attached { .. }))
    );
    assert_eq!(s.device.replace(s.parent, 0), Ok(s.parent), "to itself");
    assert_matches!(
        s.device.replace(s.parent, 9),
        Err(Error::Attach(AttachError::NothingToReplace { .. })),
        "another PASID"
    );
    let args = HwptAlloc::new(s.device.id(), s.ioas).with_flags(HwptFlags::PASID);
    let pasids = s.m.context.hwpt_alloc(args).unwrap();
    assert_matches!(
        s.device.attach_first(pasids, 9),
        Err(Error::Attach(AttachError::NotForPasids { .. })),
        "the device's own"
    );
    assert_eq!(s.device.replace(pasids, 0), Ok(pasids));
    assert_eq!(s.device.attach_first(pasids, 9), Ok(pasids));
    assert_matches!(
        s.device.attach_first(pasids, 9),
        Err(Error::Attach(AttachError::Attached { .. }))
    );
    assert_matches!(
        s.device.attach_first(s.ioas, 10),
        Err(Error::Attach(AttachError::NotForPasids { .. }))
    );
    assert_matches!(
        s.device.attach_first(pasids, 1 << 20),
        Err(Error::Attach(AttachError::NoSuchPasid { .. }))
    );
    assert_matches!(
        s.device.replace(s.parent, 0),
        Err(Error::Attach(AttachError::NotForPasids { .. }))
    );
}

#[test]
fn invalidation_tells_how_far_it_came() {
    let s = setup();
    let context = &s.m.context;
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    s.program.put(0x200, &1u32.to_ne_bytes());
    s.program.put(0x204, &9u32.to_ne_bytes());
    let entries = |count| UserArray::new(&s.program, KIND, 0x200, 4, count).unwrap();
    let invalidate = |id, count| context.hwpt_invalidate(id, &entries(count));
    let good = |done| Invalidated {
        done,
        result: Ok(()),
    };
    assert_eq!(invalidate(nested, 0), good(0));
    assert_eq!(invalidate(nested, 1), good(1));
    let refused = Error::Refused(Refusal::Invalid);
    assert_eq!(invalidate(nested, 2), Invalidated::stopped(1, refused));
    let unknown = Invalidated::stopped(0, ObjectError::Missing(NOBODY).into());
    assert_eq!(invalidate(NOBODY, 1), unknown);
    let nothing = |id| Invalidated::stopped(0, ObjectError::NothingCached(id).into());
    assert_eq!(invalidate(s.parent, 1), nothing(s.parent));
    assert_eq!(invalidate(s.ioas, 1), nothing(s.ioas));
}

#[test]
fn entries_longer_than_known_must_end_in_zeros() {
    let s = setup();
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    let long = UserArray::new(&s.program, KIND, 0x200, 8, 2).unwrap();
    assert_eq!(s.m.context.hwpt_invalidate(nested, &long).done, 2);
    s.program.put(0x20f, &[1]);
    let stopped = UserDataError::UnknownBytes { known: 4 };
    let stopped = Invalidated::stopped(1, stopped.into());
    assert_eq!(s.m.context.hwpt_invalidate(nested, &long), stopped);
    for (address, len, count) in [
        (0, 4, 1),
        (0x200, 0, 1),
        (0x200, UserArray::MAX_ENTRY + 1, 1),
        (0x200, 4, UserArray::MAX_ENTRIES + 1),
    ] {
        let array = UserArray::new(&s.program, KIND, address, len, count);
        assert_matches!(
            array.map(drop),
            Err(Error::UserData(UserDataError::BadArray { .. }))
        );
    }
    assert!(UserArray::new(&s.program, KIND, 0, 0, 0).is_ok(), "a probe");
}
