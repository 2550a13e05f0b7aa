//! A process that has confined itself serves as before. In a process of its own: there is no way back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use ioasid_dsa::spec::Descriptor;
use rustix::io::Errno;

#[test]
fn a_confined_server_serves_and_can_open_nothing() {
    let fixture = Fixture::new();
    // Clients and their memory are of this process too: they are there before.
    let (ram, mut vmm) = (memfd(4 << 20), Vmm::new(fixture.stream(MDEV1)));
    let mut private = Vmm::new(fixture.stream(MDEV2));
    ioasid_host::prepare_received().unwrap();
    ioasid_host::confine().unwrap();
    assert_eq!(
        std::fs::File::open("/proc/self/maps")
            .unwrap_err()
            .raw_os_error(),
        Some(Errno::PERM.raw_os_error())
    );
    vmm.version();
    vmm.map(Some(&ram), 0, 0, 4 << 20).unwrap();
    vmm.bring_up_child();
    vmm.submit(Descriptor::fill(0x10_0000, 0x77, 1 << 20, 0x40));
    assert_eq!(wait_record(&ram, 0x40).status, 1);
    private.version();
    private.ram = vec![0; 1 << 20];
    private.map(None, 0, 0, 1 << 20).unwrap();
    private.bring_up_child();
    private.submit(Descriptor::fill(0x1000, 0x77, 4096, 0x40));
    while private.ram[0x40] == 0 {
        let message = private.receive().unwrap();
        private.answer(&message);
    }
    private.unmap(0, 1 << 20).unwrap();
    drop((vmm, private));
    fixture.released(MDEV1);
    fixture.released(MDEV2);
    fixture.server.stop();
}
