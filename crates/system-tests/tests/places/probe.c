/*
 * A small VFIO client that knows Linux alone: it opens the nodes, binds and attaches an I/OAT, maps
 * memory, reads configuration space, copies by DMA through mapped registers, and waits for the
 * interrupt. It checks every step and exits with 1 and one line on standard error at the first
 * that fails.
 *
 *   probe ADDRESS [cdev|group] [read-only] [io-uring] [passed] [moved] [pty] [pread] [rehearsal]
 *
 * cdev, group  /dev/iommu and /dev/vfio/devices/vfioN (default), or a container and a group
 * read-only    files that are only named as arguments of others' ioctls are opened O_RDONLY
 * io-uring     every node is opened by io_uring
 * passed       another process opens every node and sends the descriptors over a socket
 * moved        every descriptor is moved to a number of its own by dup2, below 200
 * pty          a pseudo-terminal is opened and used first
 * pread        the registers are not mapped
 * rehearsal    /dev/null is opened in the way that was named, and nothing else is done: whether the
 *              host lets a program do that at all
 *
 * Numbers and layouts are those of Linux include/uapi/linux/{vfio,iommufd,io_uring}.h; registers
 * those of drivers/dma/ioat/registers.h.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/io_uring.h>

#define CLIENT "probe"
#include "client.h"

enum {
	SET_IOMMU = 0x3b66, GROUP_GET_STATUS = 0x3b67, GROUP_SET_CONTAINER = 0x3b68,
	GROUP_GET_DEVICE_FD = 0x3b6a, DEVICE_GET_INFO = 0x3b6b, DEVICE_GET_REGION_INFO = 0x3b6c,
	DEVICE_SET_IRQS = 0x3b6e, IOMMU_MAP_DMA = 0x3b71, IOMMU_UNMAP_DMA = 0x3b72,
	DEVICE_BIND_IOMMUFD = 0x3b76, DEVICE_ATTACH_IOMMUFD_PT = 0x3b77,
	IOAS_ALLOC = 0x3b81, IOAS_MAP = 0x3b85, IOAS_UNMAP = 0x3b86,
};

#define IOVA 0x40000000ul
#define SIZE 0x20000ul
#define FROM 0x1000ul
#define TO 0x10000ul
#define BYTES 0x8000ul

static int read_only, by_uring, passed, moved, next_number = 150;
static int uring_open(const char *path, int flags)
{
	struct io_uring_params params = { 0 };
	int ring = syscall(SYS_io_uring_setup, 1, &params);
	char *queue;
	struct io_uring_sqe *entry;
	struct io_uring_cqe *completed;
	int result;

	if (ring < 0)
		fail("io_uring_setup");
	queue = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
		     IORING_OFF_SQ_RING);
	entry = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
		     IORING_OFF_SQES);
	if (queue == MAP_FAILED || entry == MAP_FAILED)
		fail("mapping the rings");
	if (!(params.features & IORING_FEAT_SINGLE_MMAP))
		fail("the rings do not share a mapping");
	memset(entry, 0, sizeof(*entry));
	entry->opcode = IORING_OP_OPENAT;
	entry->fd = AT_FDCWD;
	entry->addr = (uintptr_t)path;
	entry->open_flags = flags;
	*(uint32_t *)(queue + params.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		fail("io_uring_enter");
	completed = (void *)(queue + params.cq_off.cqes);
	result = completed->res;
	munmap(queue, 4096);
	munmap(entry, 4096);
	close(ring);
	if (result < 0) {
		errno = -result;
		return -1;
	}
	return result;
}

static void send_descriptor(int socket, int fd)
{
	char byte = fd < 0 ? errno : 0, space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *control;

		message.msg_control = space;
		message.msg_controllen = sizeof(space);
		control = CMSG_FIRSTHDR(&message);
		control->cmsg_level = SOL_SOCKET;
		control->cmsg_type = SCM_RIGHTS;
		control->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(control), &fd, sizeof(int));
	}
	sure(sendmsg(socket, &message, 0), "sending a descriptor");
}

static int receive_descriptor(int socket)
{
	char byte, space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_control = space,
		.msg_controllen = sizeof(space),
	};
	int fd;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
		fail("receiving a descriptor");
	if (byte || !CMSG_FIRSTHDR(&message)) {
		errno = byte;
		return -1;
	}
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

/* A descriptor that another process has opened or asked for by an ioctl. */
static int from_another_process(const char *path, int flags, int device_of_group)
{
	int pair[2], fd;
	pid_t child;

	sure(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	child = sure(fork(), "fork");
	if (!child) {
		fd = device_of_group < 0 ? open(path, flags)
					 : ioctl(device_of_group, GROUP_GET_DEVICE_FD, path);
		send_descriptor(pair[1], fd);
		_exit(0);
	}
	fd = receive_descriptor(pair[0]);
	sure(waitpid(child, NULL, 0), "waitpid");
	close(pair[0]);
	close(pair[1]);
	return fd;
}

/* Moves a descriptor to a number that no open would have given it, if that is asked for. */
static int placed(int fd, const char *what)
{
	sure(fd, what);
	if (!moved)
		return fd;
	next_number++;
	sure(dup2(fd, next_number), "dup2");
	close(fd);
	return next_number;
}

static int node(const char *path, int as_argument)
{
	int flags = (as_argument && read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC, fd;

	step = path;
	if (by_uring)
		fd = uring_open(path, flags);
	else if (passed)
		fd = from_another_process(path, flags, -1);
	else
		fd = open(path, flags);
	return placed(fd, "opening it");
}

/* The device by a bound and attached cdev; its memory is mapped. */
static int by_cdev(const char *address, char *memory)
{
	char path[300];
	struct { uint32_t size, flags, out; } alloc = { 12, 0, 0 };
	struct { uint32_t argsz, flags; int32_t iommufd; uint32_t out; } bind = { 16, 0, -1, 0 };
	struct { uint32_t argsz, flags, pt; } attach = { 12, 0, 0 };
	struct {
		uint32_t size, flags, ioas, reserved;
		uint64_t address, length, iova;
	} map = { 40, 7, 0, 0, (uintptr_t)memory, SIZE, IOVA };
	struct stat seen;
	int iommu, device;

	find_node(address, path, sizeof(path));
	iommu = node("/dev/iommu", 1);
	device = node(path, 0);
	step = "fstat of the device";
	sure(fstat(device, &seen), "failed");
	if (!S_ISCHR(seen.st_mode))
		fail("it is no character device: mode %o", seen.st_mode);
	step = "binding";
	bind.iommufd = iommu;
	sure(ioctl(device, DEVICE_BIND_IOMMUFD, &bind), "VFIO_DEVICE_BIND_IOMMUFD");
	sure(ioctl(iommu, IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
	attach.pt = map.ioas = alloc.out;
	sure(ioctl(device, DEVICE_ATTACH_IOMMUFD_PT, &attach), "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	step = "mapping memory";
	sure(ioctl(iommu, IOAS_MAP, &map), "IOMMU_IOAS_MAP");
	return device;
}

/* The same by a container and a group. */
static int by_group(const char *address, char *memory)
{
	char link[200], target[200], path[300];
	struct { uint32_t argsz, flags; } status = { 8, 0 };
	struct {
		uint32_t argsz, flags;
		uint64_t address, iova, size;
	} map = { 32, 3, (uintptr_t)memory, IOVA, SIZE };
	int container, group, device;
	ssize_t length;

	snprintf(link, sizeof(link), "/sys/bus/pci/devices/%s/iommu_group", address);
	step = link;
	length = sure(readlink(link, target, sizeof(target) - 1), "reading the link");
	target[length] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(target, '/') + 1);
	container = node("/dev/vfio/vfio", 1);
	group = node(path, 1);
	step = "setting the container";
	sure(ioctl(group, GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
	sure(ioctl(group, GROUP_GET_STATUS, &status), "VFIO_GROUP_GET_STATUS");
	if (status.flags != 3)
		fail("the group's flags are %x", status.flags);
	sure(ioctl(container, SET_IOMMU, 3), "VFIO_SET_IOMMU");
	step = "the device of the group";
	device = passed ? from_another_process(address, 0, group)
			: ioctl(group, GROUP_GET_DEVICE_FD, address);
	device = placed(device, "VFIO_GROUP_GET_DEVICE_FD");
	step = "mapping memory";
	sure(ioctl(container, IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
	return device;
}

struct region { uint32_t argsz, flags, index, cap; uint64_t size, offset; };

static struct region region(int device, uint32_t index)
{
	struct region info = { .argsz = sizeof(info), .index = index };

	sure(ioctl(device, DEVICE_GET_REGION_INFO, &info), "VFIO_DEVICE_GET_REGION_INFO");
	return info;
}

static struct region bar;
static volatile char *registers;
static int the_device;

static void put(uint64_t at, uint32_t value, size_t width)
{
	if (!registers) {
		if (pwrite(the_device, &value, width, bar.offset + at) != (ssize_t)width)
			fail("pwrite of register %lx", (long)at);
	} else if (width == 1)
		*(volatile uint8_t *)(registers + at) = value;
	else if (width == 2)
		*(volatile uint16_t *)(registers + at) = value;
	else
		*(volatile uint32_t *)(registers + at) = value;
}

static uint8_t get8(uint64_t at)
{
	uint8_t value;

	if (registers)
		return *(volatile uint8_t *)(registers + at);
	if (pread(the_device, &value, 1, bar.offset + at) != 1)
		fail("pread of register %lx", (long)at);
	return value;
}

static void put64(uint64_t at, uint64_t value)
{
	put(at, value, 4);
	put(at + 4, value >> 32, 4);
}

static void copy_by_dma(char *memory, int event)
{
	uint64_t *descriptor = (uint64_t *)memory, count;
	struct pollfd wait = { event, POLLIN, 0 };
	unsigned long n;

	for (n = 0; n < BYTES; n++)
		memory[FROM + n] = n * 7 + n / 251;
	descriptor[0] = BYTES | 9ul << 32; /* copy; interrupt and completion word */
	descriptor[1] = IOVA + FROM;
	descriptor[2] = IOVA + TO;
	descriptor[3] = 0;
	step = "the registers";
	put(0x84, 0x20, 1); /* CHANCMD: reset */
	while (get8(0x84) & 0x20)
		;
	put(0x03, 0x08, 1); /* INTRCTRL: a vector for each channel */
	put64(0x98, IOVA + 0x200); /* CHANCMP */
	put64(0x90, IOVA); /* CHAINADDR */
	put(0x80, 1, 2); /* CHANCTRL: rearm */
	put(0x86, 1, 2); /* DMACOUNT */
	step = "the interrupt";
	while (poll(&wait, 1, -1) < 0)
		if (errno != EINTR)
			fail("poll");
	if (read(event, &count, sizeof(count)) != sizeof(count) || count != 1)
		fail("the eventfd counts %lu", (long)count);
	step = "the copy";
	if (memcmp(memory + FROM, memory + TO, BYTES))
		fail("the bytes differ");
}

static void use_a_pty(void)
{
	char back[3];
	int controller, terminal;

	step = "a pseudo-terminal";
	sure(openpty(&controller, &terminal, NULL, NULL, NULL), "openpty");
	if (!ttyname(terminal))
		fail("it has no name");
	if (write(controller, "ok\n", 3) != 3 || read(terminal, back, 3) != 3)
		fail("a line does not get through");
	close(terminal);
	close(controller);
}

int main(int argc, char **argv)
{
	struct { uint32_t argsz, flags, regions, irqs; } info = { 16, 0, 0, 0 };
	struct {
		uint32_t argsz, flags, index, start, count;
		int32_t fd;
	} irqs = { 24, 0x24, 2, 0, 1, -1 };
	struct region config;
	uint16_t command = 6;
	uint32_t ids;
	int group = 0, mapped = 1, rehearsal = 0, event, n;
	char *memory;

	for (n = 2; n < argc; n++) {
		if (!strcmp(argv[n], "group"))
			group = 1;
		else if (!strcmp(argv[n], "read-only"))
			read_only = 1;
		else if (!strcmp(argv[n], "io-uring"))
			by_uring = 1;
		else if (!strcmp(argv[n], "passed"))
			passed = 1;
		else if (!strcmp(argv[n], "moved"))
			moved = 1;
		else if (!strcmp(argv[n], "pread"))
			mapped = 0;
		else if (!strcmp(argv[n], "rehearsal"))
			rehearsal = 1;
		else if (!strcmp(argv[n], "pty"))
			use_a_pty();
		else if (strcmp(argv[n], "cdev"))
			fail("%s is no word that it knows", argv[n]);
	}
	if (argc < 2)
		fail("which device?");
	if (rehearsal) {
		node("/dev/null", 0);
		return 0;
	}
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	the_device = group ? by_group(argv[1], memory) : by_cdev(argv[1], memory);
	step = "what the device is";
	sure(ioctl(the_device, DEVICE_GET_INFO, &info), "VFIO_DEVICE_GET_INFO");
	config = region(the_device, 7);
	bar = region(the_device, 0);
	if (pread(the_device, &ids, 4, config.offset) != 4 || ids != 0x20218086)
		fail("configuration space says %08x", ids);
	if (pwrite(the_device, &command, 2, config.offset + 4) != 2)
		fail("the command register cannot be written");
	if (mapped) {
		void *at = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, the_device,
				bar.offset);

		if (at == MAP_FAILED)
			fail("mapping the registers");
		registers = at;
	}
	step = "setting an interrupt";
	irqs.fd = event = sure(eventfd(0, EFD_CLOEXEC), "eventfd");
	sure(ioctl(the_device, DEVICE_SET_IRQS, &irqs), "VFIO_DEVICE_SET_IRQS");
	copy_by_dma(memory, event);
	/* Again: what the first round left behind must not be in the way. */
	memset(memory + TO, 0, BYTES);
	copy_by_dma(memory, event);
	printf("probe: %s, %lu bytes by DMA, an interrupt each time\n", group ? "group" : "cdev", 2 * BYTES);
	return 0;
}
