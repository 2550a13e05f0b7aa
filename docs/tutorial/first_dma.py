import ctypes, fcntl, mmap, os, struct

def call(file, number, layout, *values):  # the structs of linux/vfio.h and linux/iommufd.h
    argument = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(file, ord(";") << 8 | number, argument)
    return struct.unpack(layout, argument)

def copy(source, destination, count, command):  # the device's registers 0x80, 0x88, 0x90, 0x98
    os.pwrite(device, struct.pack("<4Q", source, destination, count, command), 0x80)
    while os.pread(device, 4, 0x98)[0] & 1: pass

iommu, device = (os.open(path, os.O_RDWR) for path in ("/dev/iommu", "/dev/vfio/devices/vfio0"))
call(device, 118, "IIiI", 0, iommu, 0)                                  # VFIO_DEVICE_BIND_IOMMUFD
ioas = call(iommu, 0x81, "III", 0, 0)[2]                                # IOMMU_IOAS_ALLOC
call(device, 119, "III", 0, ioas)                                       # VFIO_DEVICE_ATTACH_IOMMUFD_PT
memory = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
call(iommu, 0x85, "IIIIQQQ", 7, ioas, 0, address, 4096, 0x100000)       # IOMMU_IOAS_MAP, at 0x100000
os.pwrite(device, b"\6\0", (7 << 40) + 4)                               # PCI command: memory, Bus Master
memory[:5] = b"hello"
copy(0x100000, 0x40000, 5, 1)                                           # into the device's buffer
copy(0x40000, 0x100800, 5, 3)                                           # and out again, elsewhere
print("the device copied:", memory[0x800:0x805].decode())
