//! Whatever a program sends, it gets an answer, and what it holds stays in order.

use ioasid_core::inspect::Inspect;
use ioasid_iommufd::{BoundDevice, MmapRequest, ObjectId, PageFault};
use ioasid_uapi::{
    iommufd::COMMANDS,
    spec::{container, iommufd as spec},
};
use proptest::prelude::*;

use crate::{backend::KIND, machine::*};

/// Words that tend to get past the first checks.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(0u32),
        4 => 0..12u32,
        1 => Just(KIND),
        1 => (0..64u32).prop_map(|page| page << 12),
        1 => Just(PAGE as u32),
        1 => Just(BASE as u32),
        1 => Just(DATA as u32),
        1 => Just(0xfee0_0000),
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ]
}

#[derive(Clone, Debug)]
struct Shot {
    request: u32,
    size: u32,
    words: Vec<u32>,
    address: u64,
    attach: Option<(usize, u32)>,
    event: Option<(usize, usize)>,
}

fn shot() -> impl Strategy<Value = Shot> {
    let known = (0..COMMANDS.len()).prop_map(|at| COMMANDS[at].request);
    let request = prop_oneof![
        12 => known,
        1 => any::<u32>(),
        1 => (0..256u32).prop_map(|nr| spec::TYPE << 8 | nr),
        2 => prop::sample::select(vec![
            container::SET_IOMMU,
            container::IOMMU_GET_INFO,
            container::IOMMU_MAP_DMA,
            container::IOMMU_UNMAP_DMA,
        ]),
    ];
    let size = prop_oneof![6 => Just(0u32), 1 => 0..64u32, 1 => any::<u32>()];
    let address = prop_oneof![8 => Just(BASE), 1 => Just(READ_ONLY - 16), 1 => any::<u64>()];
    let attach = prop::option::weighted(0.2, (0..6usize, 0..12u32));
    let event = prop::option::weighted(0.2, (0..5usize, 0..100usize));
    (
        request,
        size,
        prop::collection::vec(word(), 16),
        address,
        attach,
        event,
    )
        .prop_map(|(request, size, words, address, attach, event)| Shot {
            request,
            size,
            words,
            address,
            attach,
            event,
        })
}

/// What a program does with the descriptors that it was given, and with the file itself.
fn touch(m: &Machine, device: &BoundDevice, (what, count): (usize, usize)) {
    let files = m.program.event_files();
    let file = files.get(count % files.len().max(1));
    // Whether it succeeds is not the point.
    match (what, file) {
        (0, Some(file)) => drop(file.read(count)),
        (1, Some(file)) => drop(file.write(&vec![0; count])),
        (2, Some(file)) => file.closed(),
        (3, _) => {
            let fault = PageFault {
                pasid: count.checked_sub(50).map(|pasid| pasid as u32),
                group: 0,
                perm: 1,
                address: 0x1000,
            };
            let on_answer = Box::new(|_| {});
            let _ = m.context.report_page_fault(device.id(), fault, on_answer);
        }
        _ => drop(m.context.mmap(MmapRequest {
            offset: count as u64 * PAGE,
            len: PAGE,
            shared: true,
            executable: false,
        })),
    }
}

fn fire(m: &Machine, devices: &[BoundDevice; 3], shot: Shot) {
    if let Some(event) = shot.event {
        touch(m, &devices[2], event);
    }
    if let Some((how, pt)) = shot.attach {
        let pt = ObjectId::from_raw(pt);
        // Whether it succeeds is not the point.
        match how {
            0 => drop(devices[0].attach(pt)),
            1 => drop(devices[1].attach(pt)),
            2 => drop(devices[0].attach_pasid(pt, shot.words[0])),
            3 => drop(devices[2].attach_first(pt, shot.words[0])),
            4 => drop(devices[2].replace(pt, shot.words[0])),
            _ => devices[(pt.get() % 3) as usize].detach(),
        }
    }
    let command = COMMANDS
        .iter()
        .find(|command| command.request == shot.request);
    let size = match (shot.size, command) {
        (0, Some(command)) => command.size as u32,
        (size, _) => size,
    };
    let bytes: Vec<u8> = shot
        .words
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    m.put(BASE, &bytes);
    m.put(BASE, &size.to_ne_bytes());
    let _ = m.at(shot.request, shot.address);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_ioctls_is_answered_and_leaves_nothing_behind(
        shots in prop::collection::vec(shot(), 1..60),
    ) {
        let m = Machine::new();
        let before = m.iommu.space().used_windows();
        let devices = [m.pdev(), m.mdev(), m.toy()];
        for shot in shots {
            fire(&m, &devices, shot);
        }
        let _ = m.context.inspect();
        drop(devices);
        m.context.close();
        for file in m.program.event_files() {
            file.closed();
        }
        prop_assert_eq!(m.iommu.paging_domains(), 0);
        prop_assert_eq!(m.iommu.space().used_windows(), before);
    }
}
