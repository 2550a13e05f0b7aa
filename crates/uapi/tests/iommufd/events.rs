//! Commands that give a program a descriptor.

use ioasid_uapi::{Errno, spec::iommufd as spec};

use crate::{backend::KIND, machine::*};

fn destroy(m: &Machine, id: u32) -> Result<u64, Errno> {
    let args = spec::Destroy {
        id,
        ..Default::default()
    };
    m.result("DESTROY", args)
}

#[test]
fn a_fault_queue_comes_with_a_descriptor_that_keeps_it() {
    let m = Machine::new();
    let flags = spec::FaultAlloc {
        flags: 1,
        ..Default::default()
    };
    assert_eq!(m.result("FAULT_QUEUE_ALLOC", flags), Err(Errno::EOPNOTSUPP));
    let (result, reply) = m.run("FAULT_QUEUE_ALLOC", spec::FaultAlloc::default());
    assert_eq!((result, reply.out_fault_id), (Ok(0), 1));
    let file = m.program.event_file(reply.out_fault_fd);
    assert_eq!(destroy(&m, 1), Err(Errno::EBUSY));
    let errno = |error| Errno::from(error);
    assert_eq!(file.read(39).map_err(errno), Err(Errno::ESPIPE));
    assert_eq!(file.write(&[0; 7]).map_err(errno), Err(Errno::ESPIPE));
    assert_eq!(file.write(&[0; 8]).map_err(errno), Err(Errno::EINVAL));
    assert_eq!(file.read(40), Ok(Vec::new()));
    file.closed();
    assert_eq!(destroy(&m, 1), Ok(0));
}

#[test]
fn without_a_descriptor_there_is_no_queue() {
    let m = Machine::new();
    m.program.give_descriptors(0);
    let args = spec::FaultAlloc::default();
    assert_eq!(m.result("FAULT_QUEUE_ALLOC", args), Err(Errno::EMFILE));
    m.program.give_descriptors(1);
    // A program that cannot get the reply gets no descriptor either.
    m.put(READ_ONLY - 8, &16u32.to_ne_bytes());
    m.put(READ_ONLY - 4, &[0; 4]);
    let refused = m.at(request("FAULT_QUEUE_ALLOC"), READ_ONLY - 8);
    assert_eq!(refused, Err(Errno::EFAULT));
    let (result, reply) = m.run("FAULT_QUEUE_ALLOC", args);
    assert_eq!((result, reply.out_fault_id), (Ok(0), 1), "nothing is left");
}

#[test]
fn page_tables_take_the_id_of_a_fault_queue() {
    let m = Machine::new();
    let pdev = m.pdev();
    let (_, queue) = m.run("FAULT_QUEUE_ALLOC", spec::FaultAlloc::default());
    let ioas = m.ioas();
    let args = spec::HwptAlloc {
        flags: 1 << 2,
        dev_id: pdev.id().get(),
        pt_id: ioas,
        fault_id: ioas,
        ..Default::default()
    };
    assert_eq!(m.result("HWPT_ALLOC", args), Err(Errno::ENOENT));
    let args = spec::HwptAlloc {
        fault_id: queue.out_fault_id,
        ..args
    };
    let (result, reply) = m.run("HWPT_ALLOC", args);
    assert_eq!((result, reply.out_hwpt_id), (Ok(0), ioas + 1));
    m.program.event_file(queue.out_fault_fd).closed();
    assert_eq!(destroy(&m, queue.out_fault_id), Err(Errno::EBUSY));
}

#[test]
fn event_queues_are_checked_before_their_virtual_iommu() {
    let m = Machine::new();
    let (_toy, _, viommu) = m.viommu();
    let good = spec::VeventqAlloc {
        viommu_id: viommu,
        kind: KIND,
        veventq_depth: 2,
        ..Default::default()
    };
    let run = |args| m.result("VEVENTQ_ALLOC", args);
    let nobodys = spec::VeventqAlloc {
        viommu_id: NOBODY,
        veventq_depth: 0,
        ..good
    };
    for unsupported in [
        spec::VeventqAlloc {
            flags: 1,
            ..nobodys
        },
        spec::VeventqAlloc {
            reserved: 1,
            ..nobodys
        },
        spec::VeventqAlloc { kind: 0, ..nobodys },
    ] {
        assert_eq!(run(unsupported), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(run(nobodys), Err(Errno::EINVAL));
    let unknown = spec::VeventqAlloc {
        veventq_depth: 1 << 19,
        ..nobodys
    };
    assert_eq!(run(unknown), Err(Errno::ENOENT));
    let (result, reply) = m.run("VEVENTQ_ALLOC", good);
    assert_eq!((result, reply.out_veventq_id), (Ok(0), viommu + 1));
    assert_eq!(run(good), Err(Errno::EEXIST));
    let file = m.program.event_file(reply.out_veventq_fd);
    assert_eq!(file.read(7).map_err(Errno::from), Err(Errno::EINVAL));
    assert_eq!(file.write(&[0; 8]).map_err(Errno::from), Err(Errno::EINVAL));
    assert_eq!(destroy(&m, viommu), Err(Errno::EBUSY));
}
