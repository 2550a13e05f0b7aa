//! Attaching: which DMA lands where, and what is refused.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::*;
use ioasid_core::{
    Access, AddrRange, Prot,
    inspect::{Inspect, Node, Value},
    memory::OwnPages,
};
use ioasid_iommu::{
    AttachError, DeviceConfig, DmaSource, Domain, DomainConfig, DomainKind, Fault, FaultReason,
    Mismatch, TableFormat,
};

const IOVA: u64 = 0x1_0000;

#[test]
fn one_primary_and_eight_auxiliary_domains_lead_the_same_address_to_nine_buffers() {
    let iommu = machine();
    let parent = device(&iommu, 1);
    let spaces: Vec<(Arc<Domain>, OwnPages)> = (0..9).map(|_| mapped(&iommu, IOVA, 4096)).collect();
    DmaSource::new(&parent, None)
        .attach(&spaces[0].0, &sink())
        .unwrap();
    for number in 1..9 {
        source(&parent, number)
            .attach(&spaces[number as usize].0, &sink())
            .unwrap();
    }
    let mut port = parent.port();
    write(&mut port, None, IOVA, &[100]).unwrap();
    for number in 1..9_u32 {
        write(&mut port, pasid(number), IOVA, &[number as u8]).unwrap();
    }
    let found: Vec<u8> = spaces.iter().map(|(_, p)| contents(p, 1)[0]).collect();
    assert_eq!(found, [100, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(iommu.paging_domains(), 9);
}

#[test]
fn one_domain_is_primary_of_one_device_and_auxiliary_of_another() {
    let iommu = machine();
    let (pdev, parent) = (device(&iommu, 1), device(&iommu, 2));
    let domain = domain(&iommu);
    DmaSource::new(&pdev, None)
        .attach(&domain, &sink())
        .unwrap();
    DmaSource::new(&parent, pasid(7))
        .attach(&domain, &sink())
        .unwrap();
    assert_eq!(
        domain.attachments(),
        [(pdev.address(), None), (parent.address(), pasid(7))]
    );
    let memory = pages(&iommu, 8192);
    domain.map(IOVA, memory.spa(), 8192, Prot::RW).unwrap();
    write(&mut pdev.port(), None, IOVA, b"pdev").unwrap();
    write(&mut parent.port(), pasid(7), IOVA + 4096, b"mdev").unwrap();
    assert_eq!(&contents(&memory, 4), b"pdev");
    assert_eq!(&contents(&memory, 4100)[4096..], b"mdev");
    // One unmap ends both.
    assert_eq!(domain.unmap(range(IOVA, 8192)), 8192);
    assert!(write(&mut pdev.port(), None, IOVA, b"x").is_err());
    assert!(write(&mut parent.port(), pasid(7), IOVA, b"x").is_err());
}

#[test]
fn a_map_costs_the_same_with_one_attachment_and_with_four() {
    let costs: Vec<u64> = [1, 4]
        .into_iter()
        .map(|attachments| {
            let iommu = machine();
            let domain = domain(&iommu);
            for number in 0..attachments {
                let parent = device(&iommu, number);
                source(&parent, 1).attach(&domain, &sink()).unwrap();
            }
            let memory = pages(&iommu, 64 << 10);
            let before = domain.pte_writes();
            domain.map(IOVA, memory.spa(), 64 << 10, Prot::RW).unwrap();
            assert_eq!(domain.table_pages(), 4, "one table per level, once");
            domain.pte_writes() - before
        })
        .collect();
    assert!(costs[0] >= 16, "sixteen leaves: {costs:?}");
    assert_eq!(costs[0], costs[1]);
}

#[test]
fn attaching_a_device_wants_a_group_of_one_and_a_free_one() {
    let iommu = machine();
    let (first, old) = mapped(&iommu, IOVA, 4096);
    let second = domain(&iommu);
    let lonely = device(&iommu, 1);
    DmaSource::new(&lonely, None)
        .attach(&first, &sink())
        .unwrap();
    let lonely_source = DmaSource::new(&lonely, None);
    assert_eq!(
        lonely_source.attach(&second, &sink()),
        Err(AttachError::Attached {
            at: lonely_source.id(),
            domain: first.id()
        })
    );
    write(&mut lonely.port(), None, IOVA, b"still").unwrap();
    assert_eq!(&contents(&old, 5), b"still", "the old domain is untouched");

    let group = iommu.add_group();
    let siblings: Vec<_> = (2..4)
        .map(|number| {
            let config = DeviceConfig {
                group: Some(Arc::clone(&group)),
                ..DeviceConfig::new(address(number))
            };
            iommu.add_device(config).unwrap()
        })
        .collect();
    let sibling = DmaSource::new(&siblings[0], None);
    assert_eq!(
        sibling.attach(&second, &sink()),
        Err(AttachError::NotSingleton {
            device: siblings[0].address(),
            others: 1
        })
    );
    // The whole group goes together.
    sibling.attach_group(&first, &sink()).unwrap();
    for sibling in &siblings {
        write(&mut sibling.port(), None, IOVA, b"group").unwrap();
    }
    assert_eq!(
        sibling.attach_group(&second, &sink()),
        Err(AttachError::Attached {
            at: sibling.id(),
            domain: first.id()
        })
    );
}

#[test]
fn attaching_refuses_each_bad_pasid_with_its_own_error() {
    let iommu = machine();
    let domain = domain(&iommu);
    let parent = iommu
        .add_device(DeviceConfig {
            pasid_bits: 8,
            ..DeviceConfig::new(address(1))
        })
        .unwrap();
    let plain = iommu
        .add_device(DeviceConfig {
            pasid_bits: 0,
            ..DeviceConfig::new(address(2))
        })
        .unwrap();
    source(&parent, 5).attach(&domain, &sink()).unwrap();
    let out_of_range = |pasid| {
        Err(AttachError::PasidRange {
            device: parent.address(),
            pasid,
            last: 255,
        })
    };
    let attached = Err(AttachError::Attached {
        at: source(&parent, 5).id(),
        domain: domain.id(),
    });
    let unsupported = Err(AttachError::NoPasidSupport {
        device: plain.address(),
    });
    let table = [
        (&parent, 0, out_of_range(0)),
        (&parent, 256, out_of_range(256)),
        (&parent, u32::MAX, out_of_range(u32::MAX)),
        (&parent, 5, attached),
        (&plain, 1, unsupported),
        (&parent, 255, Ok(())),
    ];
    for (device, number, expected) in table {
        let attached = DmaSource::with_pasid(device, number)
            .and_then(|source| source.attach(&domain, &sink()));
        assert_eq!(attached, expected, "{device:?} pasid {number}");
    }
    assert_eq!(domain.attachments().len(), 2);
}

#[test]
fn a_domain_that_the_device_cannot_walk_or_track_is_incompatible() {
    let iommu = machine();
    let config = DeviceConfig {
        dirty: false,
        page_requests: false,
        ..DeviceConfig::new(address(1))
    };
    let device = iommu.add_device(config).unwrap();
    let other_format = DomainConfig::unmanaged(TableFormat::AmdV1);
    let tracking = DomainConfig {
        dirty_tracking: true,
        ..DomainConfig::unmanaged(FORMAT)
    };
    let address = device.address();
    let wrong_format = Mismatch::Format {
        device: address,
        walked: FORMAT,
        table: TableFormat::AmdV1,
    };
    let untracked = Mismatch::DirtyTracking { device: address };
    for (config, mismatch) in [(other_format, wrong_format), (tracking, untracked)] {
        let domain = iommu.alloc_domain(config).unwrap();
        for source in [DmaSource::new(&device, None), source(&device, 1)] {
            assert_eq!(
                source.attach(&domain, &sink()),
                Err(AttachError::Incompatible(mismatch))
            );
        }
        assert!(domain.attachments().is_empty());
    }
    // A failed replacement keeps the old domain.
    let (old, memory) = mapped(&iommu, IOVA, 4096);
    DmaSource::new(&device, None).attach(&old, &sink()).unwrap();
    let bad = iommu.alloc_domain(other_format).unwrap();
    assert_eq!(
        DmaSource::new(&device, None).replace(&bad, &sink()),
        Err(AttachError::Incompatible(wrong_format))
    );
    write(&mut device.port(), None, IOVA, b"old").unwrap();
    assert_eq!(&contents(&memory, 3), b"old");
}

#[test]
fn replace_needs_something_to_replace() {
    let iommu = machine();
    let (domain, device) = (domain(&iommu), device(&iommu, 1));
    for source in [DmaSource::new(&device, None), source(&device, 3)] {
        assert_eq!(
            source.replace(&domain, &sink()),
            Err(AttachError::NotAttached { at: source.id() })
        );
        // Detaching nothing is nothing.
        source.detach();
    }
}

#[test]
fn after_detach_every_access_faults_and_no_byte_moves() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, 4096);
    let mut port = device.port();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    source(&device, 9).attach(&domain, &sink()).unwrap();
    DmaSource::new(&device, None).detach();
    source(&device, 9).detach();
    for (tag, reason) in [
        (None, FaultReason::Blocked),
        (pasid(9), FaultReason::NotAttached),
        (pasid(10), FaultReason::NotAttached),
        (pasid(1 << 19), FaultReason::NotAttached),
    ] {
        let fault = write(&mut port, tag, IOVA, b"no").unwrap_err();
        let expected = Fault {
            device: device.address(),
            pasid: tag,
            iova: IOVA,
            access: Access::Write,
            reason,
        };
        assert_eq!(fault, expected);
    }
    assert_eq!(contents(&memory, 4096), [0; 4096]);
    assert!(domain.attachments().is_empty());
    assert_eq!(Arc::strong_count(&domain), 1, "nothing else refers to it");
}

#[test]
fn a_blocked_domain_faults_and_an_identity_domain_reaches_registered_memory_alone() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let memory = pages(&iommu, 8192);
    let config = DomainConfig::unmanaged(FORMAT);
    let identity = iommu
        .alloc_domain(config.with_kind(DomainKind::Identity))
        .unwrap();
    let blocked = iommu
        .alloc_domain(config.with_kind(DomainKind::Blocked))
        .unwrap();
    assert_eq!(iommu.paging_domains(), 0);
    let mut port = device.port();
    DmaSource::new(&device, None)
        .attach(&identity, &sink())
        .unwrap();
    write(&mut port, None, memory.spa() + 5, b"identity").unwrap();
    assert_eq!(&contents(&memory, 13)[5..], b"identity");
    for hole in [0, 0x1000, memory.spa() - 1, memory.spa() + 8192, 1 << 60] {
        let fault = write(&mut port, None, hole, b"x").unwrap_err();
        assert_eq!(fault.reason, FaultReason::Unregistered, "{hole:#x}");
    }
    // A range that leaves the registration: what is inside arrives, the rest faults.
    let fault = write(&mut port, None, memory.spa() + 8190, b"abcd").unwrap_err();
    assert_eq!(
        (fault.iova, fault.reason),
        (memory.spa() + 8192, FaultReason::Unregistered)
    );
    assert_eq!(&contents(&memory, 8192)[8190..], b"ab");
    DmaSource::new(&device, None)
        .replace(&blocked, &sink())
        .unwrap();
    let fault = write(&mut port, None, memory.spa(), b"x").unwrap_err();
    assert_eq!(fault.reason, FaultReason::Blocked);
}

#[test]
fn one_pasid_number_on_two_devices_is_two_routes() {
    let iommu = machine();
    let devices = [device(&iommu, 1), device(&iommu, 2)];
    let spaces = [mapped(&iommu, IOVA, 4096), mapped(&iommu, IOVA, 4096)];
    for (device, (domain, _)) in devices.iter().zip(&spaces) {
        source(device, 5).attach(domain, &sink()).unwrap();
    }
    for (number, device) in devices.iter().enumerate() {
        write(&mut device.port(), pasid(5), IOVA, &[number as u8 + 1]).unwrap();
    }
    assert_eq!(contents(&spaces[0].1, 1), [1]);
    assert_eq!(contents(&spaces[1].1, 1), [2]);
    // The end of one is not the end of the other.
    source(&devices[0], 5).detach();
    assert!(write(&mut devices[0].port(), pasid(5), IOVA, &[3]).is_err());
    write(&mut devices[1].port(), pasid(5), IOVA, &[4]).unwrap();
}

#[test]
fn ten_thousand_replacements_under_dma_show_no_gap() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let spaces = [
        mapped(&iommu, IOVA, 64 << 10),
        mapped(&iommu, IOVA, 64 << 10),
    ];
    let routes = [None, pasid(3)].map(|pasid| DmaSource::new(&device, pasid));
    for route in &routes {
        route.attach(&spaces[0].0, &sink()).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let engines: Vec<_> = routes
            .iter()
            .map(|route| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut port = route.device.port();
                    let mut copies = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        copy(&mut port, route.pasid, IOVA + 0x8000, IOVA, 0x1800)
                            .expect("no window without a translation");
                        copies += 1;
                    }
                    copies
                })
            })
            .collect();
        for round in 1..=10_000 {
            for route in &routes {
                route.replace(&spaces[round % 2].0, &sink()).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for engine in engines {
            assert!(engine.join().unwrap() > 0);
        }
    });
    assert_eq!(spaces[0].0.faults() + spaces[1].0.faults(), 0);
}

#[test]
fn routes_come_and_go_while_the_primary_one_works_without_a_fault() {
    let iommu = machine();
    let parent = device(&iommu, 1);
    let (primary, _memory) = mapped(&iommu, IOVA, 64 << 10);
    let (reports, primary_sink) = log();
    DmaSource::new(&parent, None)
        .attach(&primary, &primary_sink)
        .unwrap();
    let others: Vec<_> = (0..3).map(|_| mapped(&iommu, IOVA, 4096)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, parent) = (&stop, &parent);
        let engine = scope.spawn(move || {
            let mut port = parent.port();
            let mut copies = 0_u64;
            while !stop.load(Ordering::Relaxed) || copies == 0 {
                copy(&mut port, None, IOVA + 0x8000, IOVA, 0x2000).unwrap();
                copies += 1;
            }
        });
        let mut random = Random(7);
        for _ in 0..5_000 {
            let number = random.below(6) as u32 + 1;
            let (domain, _) = &others[random.below(3) as usize];
            let _ = match random.below(3) {
                0 => source(parent, number).attach(domain, &sink()),
                1 => source(parent, number).replace(domain, &sink()),
                _ => {
                    source(parent, number).detach();
                    Ok(())
                }
            };
        }
        stop.store(true, Ordering::Relaxed);
        engine.join().unwrap();
    });
    assert_eq!(reports.total(), 0);
}

#[test]
fn a_domain_lives_as_long_as_someone_holds_or_attaches_it() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    source(&device, 4).attach(&domain, &sink()).unwrap();
    drop(domain);
    assert_eq!(iommu.paging_domains(), 1);
    assert_eq!(iommu.domains().len(), 1);
    source(&device, 4).detach();
    assert_eq!(iommu.paging_domains(), 0);
    assert!(iommu.domains().is_empty());
}

#[test]
fn a_device_is_removed_when_nothing_is_attached() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let other = domain(&iommu);
    source(&device, 4).attach(&other, &sink()).unwrap();
    assert!(iommu.remove_device(&device).is_err(), "children go first");
    source(&device, 4).detach();
    iommu.remove_device(&device).unwrap();
    assert!(iommu.devices().is_empty());
    assert!(iommu.remove_device(&device).is_err());
}

#[test]
fn inspection_shows_domains_with_their_routes_and_devices_with_theirs() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA, 8192);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    source(&device, 5).attach(&domain, &sink()).unwrap();
    write(&mut device.port(), None, IOVA, &[0; 100]).unwrap();
    let node = domain.inspect();
    let routes = [None, Some(5_u32)].map(|pasid| {
        let route = Node::new().with("device", "0000:6a:01.0");
        route.with("pasid", pasid)
    });
    assert_eq!(node.field("routes"), Some(&Value::from(routes.to_vec())));
    let range = AddrRange::from_len(IOVA, 8192).unwrap();
    assert_eq!(node.field("mapped"), Some(&Value::from(vec![range])));
    assert_eq!(node.field("mapped_bytes"), Some(&Value::Count(8192)));
    assert_eq!(node.field("table_pages"), Some(&Value::Count(4)));
    assert_eq!(node.field("dma_bytes"), Some(&Value::Count(100)));
    let tree = iommu.inspect();
    assert_eq!(tree.field("paging_domains"), Some(&Value::Count(1)));
    let Some(Value::List(devices)) = tree.field("devices") else {
        panic!("a list of devices")
    };
    let Some(Value::Node(shown)) = devices.first() else {
        panic!("one device")
    };
    assert!(matches!(shown.field("routes"), Some(Value::List(routes)) if routes.len() == 2));
}
