//! A client in Rust, to be built with sanitizers, without dependencies.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    thread,
};

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, argument: *mut u32) -> i32;
    fn mmap(address: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn main() -> io::Result<()> {
    let (iommu, device) = (open("/dev/iommu")?, open("/dev/vfio/devices/vfio0")?);
    let mut bind = [16, 0, iommu.as_raw_fd() as u32, 0];
    // SAFETY: the structure of BIND_IOMMUFD; then a new mapping of the device's registers.
    let sum = unsafe {
        assert_eq!(ioctl(device.as_raw_fd(), 0x3b76, bind.as_mut_ptr()), 0);
        device.write_all_at(&[6, 0], (7 << 40) + 4)?;
        mmap(std::ptr::null_mut(), 4096, 3, 1, device.as_raw_fd(), 0).expose_provenance()
    };
    let add = move || {
        for _ in 0..50 {
            // SAFETY: mapped until the process ends.
            unsafe { std::ptr::with_exposed_provenance_mut::<u64>(sum).write_volatile(1) };
        }
    };
    // One after the other: the locks of the standard library are not instrumented.
    for _ in 0..3 {
        thread::spawn(add).join().unwrap();
    }
    let mut found = [0; 8];
    device.read_exact_at(&mut found, 0)?;
    assert_eq!(u64::from_le_bytes(found), 150);
    println!("done");
    Ok(())
}
