"""Three transfers of QEMU's educational device to memory: says of each what became of it."""
import ctypes, fcntl, mmap, os, select, struct, sys

PATIENCE = float(sys.argv[1])  # seconds to wait for an interrupt

def call(file, number, layout, *values):
    argument = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(file, ord(";") << 8 | number, argument)
    return struct.unpack(layout, argument)

iommu, device = (os.open(path, os.O_RDWR) for path in ("/dev/iommu", "/dev/vfio/devices/vfio0"))
call(device, 118, "IIiI", 0, iommu, 0)  # VFIO_DEVICE_BIND_IOMMUFD
ioas = call(iommu, 0x81, "III", 0, 0)[2]  # IOMMU_IOAS_ALLOC
call(device, 119, "III", 0, ioas)  # VFIO_DEVICE_ATTACH_IOMMUFD_PT
memory = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
call(iommu, 0x85, "IIIIQQQ", 7, ioas, 0, address, 4096, 0x100000)  # IOMMU_IOAS_MAP
interrupt = os.eventfd(0)
call(device, 110, "IIIIIi", 0x24, 1, 0, 1, interrupt)  # VFIO_DEVICE_SET_IRQS: MSI
os.pwrite(device, b"\6\0", (7 << 40) + 4)  # PCI command: memory, Bus Master

for number in 1, 2, 3:
    memory[:8] = b"not zero"
    os.pwrite(device, struct.pack("<4Q", 0x40000, 0x100000, 8, 7), 0x80)  # out of its buffer of zeros
    interrupted = select.select([interrupt], [], [], PATIENCE)[0] and os.eventfd_read(interrupt)
    copied = memory[:8] == bytes(8)
    outcome = {
        (True, True): "copied",
        (False, True): "an interrupt, and nothing copied",
        (True, False): "copied, and no interrupt",
        (False, False): "no interrupt, and nothing copied",
    }
    print(f"{number}: {outcome[copied, bool(interrupted)]}", flush=True)
    if os.pread(device, 4, 0x98)[0] & 1:
        print("   still busy: reset")
        fcntl.ioctl(device, ord(";") << 8 | 111)  # VFIO_DEVICE_RESET
        os.pwrite(device, b"\6\0", (7 << 40) + 4)
