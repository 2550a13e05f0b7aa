/*
 * A VFIO client whose memory is private, and what may happen to a program in the middle of DMA to it.
 * It knows Linux alone, but for one thing: that a child called "ioasid-agent" may copy for it, which
 * it looks for, stops and kills. It checks every step and exits with 1 and one line on standard error
 * at the first that fails, or with 77 and a line on standard output if the host does not let it try.
 *
 *   private ADDRESS MODE
 *
 * plain    copies, and looks at the agent: a child of no group or terminal of ours, without descriptors,
 *          that wait() does not find
 * none     copies, and there is no agent
 * unshare  a new user namespace, which the kernel gives only to who has its memory to itself
 * pid      there is no agent while new children begin a process namespace, which would end with it
 * fork     a child's memory stays what it was at the fork, and the child does not have the agent's pages
 * stop     the agent is stopped
 * kill     agents are killed while they copy
 * protect  pages are made read-only after they were mapped for the device, whose right stays as in Linux
 * exec     the agent is gone in the next program
 * exit     the agent's number is printed; the program ends with DMA under way
 * abort    as exit, by a signal
 * bench    processor time of copies, of both sides if they are children of one process
 *
 * Numbers and layouts are those of Linux include/uapi/linux/{vfio,iommufd}.h; registers those of
 * drivers/dma/ioat/registers.h.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CLIENT "private"
#include "client.h"

enum {
	DEVICE_GET_REGION_INFO = 0x3b6c, DEVICE_BIND_IOMMUFD = 0x3b76,
	DEVICE_ATTACH_IOMMUFD_PT = 0x3b77, IOAS_ALLOC = 0x3b81, IOAS_MAP = 0x3b85,
};

#define IOVA 0x40000000ul
#define MEGABYTE 0x100000ul
#define SIZE (16 * MEGABYTE)
#define FROM (1 * MEGABYTE + 0x123)
#define TO (8 * MEGABYTE + 0x45)
#define SKIP 77
/* What the device takes in one descriptor (XFERCAP). */
#define PIECE 0x40000ul

static char *memory;
static volatile char *registers;
static unsigned long round_number;
static unsigned started;

static void open_device(const char *address)
{
	char path[300];
	struct { uint32_t size, flags, out; } alloc = { 12, 0, 0 };
	struct { uint32_t argsz, flags; int32_t iommufd; uint32_t out; } bind = { 16, 0, -1, 0 };
	struct { uint32_t argsz, flags, pt; } attach = { 12, 0, 0 };
	struct {
		uint32_t size, flags, ioas, reserved;
		uint64_t address, length, iova;
	} map = { 40, 7, 0, 0, 0, SIZE, IOVA };
	struct { uint32_t argsz, flags, index, cap; uint64_t size, offset; } bar = { .argsz = 32 },
		config = { .argsz = 32, .index = 7 };
	uint16_t command = 6;
	int iommu, device;
	void *at;

	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	map.address = (uintptr_t)memory;
	find_node(address, path, sizeof(path));
	step = "setting up";
	bind.iommufd = iommu = sure(open("/dev/iommu", O_RDWR | O_CLOEXEC), "/dev/iommu");
	device = sure(open(path, O_RDWR | O_CLOEXEC), path);
	sure(ioctl(device, DEVICE_BIND_IOMMUFD, &bind), "VFIO_DEVICE_BIND_IOMMUFD");
	sure(ioctl(iommu, IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
	attach.pt = map.ioas = alloc.out;
	sure(ioctl(device, DEVICE_ATTACH_IOMMUFD_PT, &attach), "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	sure(ioctl(iommu, IOAS_MAP, &map), "IOMMU_IOAS_MAP");
	sure(ioctl(device, DEVICE_GET_REGION_INFO, &bar), "VFIO_DEVICE_GET_REGION_INFO");
	sure(ioctl(device, DEVICE_GET_REGION_INFO, &config), "VFIO_DEVICE_GET_REGION_INFO");
	if (pwrite(device, &command, 2, config.offset + 4) != 2)
		fail("the command register cannot be written");
	at = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
	if (at == MAP_FAILED)
		fail("mapping the registers");
	registers = at;
}

static void put32(uint64_t at, uint32_t value)
{
	*(volatile uint32_t *)(registers + at) = value;
}

/* Copies `count` times `bytes`, at most PIECE, and returns before they are done. */
static void begin_each(unsigned long from, unsigned long to, unsigned long bytes, unsigned count)
{
	uint64_t *descriptors = (uint64_t *)memory;
	unsigned n;

	for (n = 0; n < count; n++) {
		uint64_t *one = descriptors + 8 * n;

		one[0] = bytes | (n + 1 == count ? 8ul << 32 : 0); /* the last: a completion word */
		one[1] = IOVA + from + n * bytes;
		one[2] = IOVA + to + n * bytes;
		one[3] = n + 1 == count ? 0 : IOVA + 64 * (n + 1);
	}
	*(volatile uint64_t *)(memory + 0x8000) = 0;
	*(volatile uint8_t *)(registers + 0x84) = 0x20; /* CHANCMD: reset */
	while (*(volatile uint8_t *)(registers + 0x84) & 0x20)
		;
	put32(0x98, IOVA + 0x8000); /* CHANCMP */
	put32(0x9c, 0);
	put32(0x90, IOVA); /* CHAINADDR */
	put32(0x94, 0);
	*(volatile uint16_t *)(registers + 0x86) = started = count; /* DMACOUNT */
}

/* Copies `bytes`, a multiple of PIECE, and returns before they are done. */
static void begin(unsigned long from, unsigned long to, unsigned long bytes)
{
	begin_each(from, to, PIECE, bytes / PIECE);
}

static void end(void)
{
	uint64_t last = IOVA + 64 * (started - 1), now;
	unsigned spins = 0;

	do {
		now = *(volatile uint64_t *)(memory + 0x8000);
		if ((now & 7) > 1)
			fail("the channel says %lx, CHANERR %x", (long)now,
			     *(volatile uint32_t *)(registers + 0xa8));
		if (++spins % 64 == 0)
			usleep(20);
		if (spins % 0x10000 == 0 && (registers[0x88] & 7) == 3)
			fail("the channel has halted, CHANERR %x",
			     *(volatile uint32_t *)(registers + 0xa8));
	} while ((now & ~63ul) != last);
}

static void fill(char *at, unsigned long bytes)
{
	unsigned long n, *word = (unsigned long *)(((uintptr_t)at + 7) & ~7ul);

	round_number++;
	for (n = 0; n < bytes / 8 - 1; n++)
		word[n] = n * 0x9e3779b97f4a7c15ul + round_number;
}

static void copy_and_check(unsigned long bytes)
{
	fill(memory + FROM, bytes);
	begin(FROM, TO, bytes);
	end();
	if (memcmp(memory + FROM, memory + TO, bytes))
		fail("the bytes of round %lu differ", round_number);
}

/* The state of process `number` if it is an agent of ours; 0 if not. */
static char agent_state(const char *number, int *pid)
{
	char path[64], line[300], state = 0;
	int parent = 0, is_agent = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%.20s/status", number);
	file = fopen(path, "re");
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		is_agent |= !strcmp(line, "Name:\tioasid-agent\n");
		sscanf(line, "State: %c", &state);
		sscanf(line, "PPid: %d", &parent);
	}
	fclose(file);
	*pid = atoi(number);
	return is_agent && parent == getpid() && state != 'Z' && state != 'X' ? state : 0;
}

/* Our agent, or 0. */
static int agent(void)
{
	DIR *listing = opendir("/proc");
	struct dirent *entry;
	int pid, found = 0;

	while (listing && (entry = readdir(listing)))
		if (*entry->d_name >= '1' && *entry->d_name <= '9' && agent_state(entry->d_name, &pid))
			found = pid;
	closedir(listing);
	return found;
}

/* Copies until there is an agent. */
static int with_agent(void)
{
	int rounds, pid = 0;

	step = "starting an agent";
	for (rounds = 0; rounds < 2000 && !pid; rounds++) {
		copy_and_check(MEGABYTE);
		pid = agent();
	}
	if (!pid)
		fail("there is none after %d copies", rounds);
	/* It is asked for these. */
	for (rounds = 0; rounds < 8; rounds++)
		copy_and_check(MEGABYTE);
	return pid;
}

static int entries(const char *path)
{
	DIR *listing = opendir(path);
	int count = -2;

	while (listing && readdir(listing))
		count++;
	if (listing)
		closedir(listing);
	return count;
}

static void look(void)
{
	char path[64];
	int pid = with_agent();

	step = "the agent";
	if (getsid(pid) == getsid(0) || getpgid(pid) == getpgid(0))
		fail("a terminal or a signal to the group reaches it");
	if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
		fail("wait finds it");
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	if (entries(path) > 0)
		fail("it has %d descriptors", entries(path));
	if (entries("/proc/self/task") != 1)
		fail("it is a thread");
}

static void in_a_new_namespace(void)
{
	pid_t child = sure(fork(), "fork");
	int status;

	if (!child)
		_exit(unshare(CLONE_NEWUSER) ? 1 : 0);
	sure(waitpid(child, &status, 0), "waitpid");
	if (status) {
		printf("private: the host gives no user namespaces\n");
		exit(SKIP);
	}
	with_agent();
	step = "unshare with an agent";
	sure(unshare(CLONE_NEWUSER), "unshare");
	if (agent())
		fail("the agent is there still");
}

static void before_a_new_process_namespace(void)
{
	int rounds, status;
	pid_t child;

	if (unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID)) {
		printf("private: the host gives no process namespaces\n");
		exit(SKIP);
	}
	step = "copies before a new process namespace";
	for (rounds = 0; rounds < 64; rounds++)
		copy_and_check(MEGABYTE);
	child = sure(fork(), "fork");
	if (!child)
		_exit(getpid() == 1 ? 0 : 1);
	sure(waitpid(child, &status, 0), "waitpid");
	if (status)
		fail("the first child is not the first process");
}

/* Whether the pages of the agent are in this process. */
static int has_its_pages(void)
{
	char line[400];
	int found = 0;
	FILE *file = fopen("/proc/self/maps", "re");

	while (file && fgets(line, sizeof(line), file))
		found |= !!strstr(line, "memfd:errands");
	fclose(file);
	return found;
}

static void across_fork(void)
{
	int rounds, status;

	with_agent();
	step = "fork with an agent";
	if (!has_its_pages())
		fail("it shares no page with its session");
	for (rounds = 0; rounds < 20; rounds++) {
		pid_t child;
		int pipes[2];
		char byte;

		sure(pipe(pipes), "pipe");
		fill(memory + FROM, 4 * MEGABYTE);
		memset(memory + TO, rounds, 4 * MEGABYTE);
		begin(FROM, TO, 4 * MEGABYTE);
		child = sure(fork(), "fork");
		if (!child) {
			char *then = malloc(4 * MEGABYTE);

			/* Whatever had arrived at the fork: it stays so. */
			memcpy(then, memory + TO, 4 * MEGABYTE);
			if (read(pipes[0], &byte, 1) != 1 || has_its_pages() || agent())
				_exit(2);
			_exit(memcmp(then, memory + TO, 4 * MEGABYTE) ? 3 : 0);
		}
		end();
		if (memcmp(memory + FROM, memory + TO, 4 * MEGABYTE))
			fail("the bytes differ after a fork");
		sure(write(pipes[1], "", 1), "write");
		sure(waitpid(child, &status, 0), "waitpid");
		if (status)
			fail("the child ended with %x", status);
		close(pipes[0]);
		close(pipes[1]);
	}
}

static void stopped(void)
{
	int pid = with_agent(), rounds;

	step = "copies with a stopped agent";
	sure(kill(pid, SIGSTOP), "kill");
	for (rounds = 0; rounds < 8; rounds++)
		copy_and_check(MEGABYTE);
}

static volatile int killing = 1;

static void *killer(void *nothing)
{
	while (killing) {
		int pid = agent();

		if (pid)
			kill(pid, SIGKILL);
	}
	return nothing;
}

static void killed(void)
{
	pthread_t thread;
	int rounds;

	with_agent();
	step = "copies with agents that are killed";
	if (pthread_create(&thread, NULL, killer, NULL))
		fail("no thread");
	for (rounds = 0; rounds < 200; rounds++)
		copy_and_check(3 * MEGABYTE);
	killing = 0;
	pthread_join(thread, NULL);
}

static void protected(void)
{
	char *page = (char *)(((uintptr_t)memory + TO + 0x30000) & ~4095ul);

	with_agent();
	step = "copies to pages that are read-only since";
	sure(mprotect(page, 4096, PROT_READ), "mprotect");
	copy_and_check(MEGABYTE);
	sure(mprotect(page, 4096, PROT_NONE), "mprotect");
	fill(memory + FROM, MEGABYTE);
	begin(FROM, TO, MEGABYTE);
	end();
	sure(mprotect(page, 4096, PROT_READ | PROT_WRITE), "mprotect");
	if (memcmp(memory + FROM, memory + TO, MEGABYTE))
		fail("the bytes differ");
}

static double seconds(struct timeval time)
{
	return time.tv_sec + time.tv_usec / 1e6;
}

/* Processor seconds of this process, and the time that passes, for each GiB. */
static void bench(unsigned long bytes, unsigned count)
{
	unsigned long total = 0;
	struct timespec from, to;
	struct rusage before, after;

	memset(memory, 1, SIZE);
	while (total < 64 * MEGABYTE) {
		begin_each(FROM, TO, bytes, count);
		end();
		total += bytes * count;
	}
	total = 0;
	clock_gettime(CLOCK_MONOTONIC, &from);
	getrusage(RUSAGE_SELF, &before);
	while (total < 1024 * MEGABYTE) {
		begin_each(FROM, TO, bytes, count);
		end();
		total += bytes * count;
	}
	getrusage(RUSAGE_SELF, &after);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("private: %u x %lu bytes: %.3f s, %.3f CPU s of the program; agent %d\n", count, bytes,
	       to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) / 1e9,
	       seconds(after.ru_utime) + seconds(after.ru_stime) - seconds(before.ru_utime) -
	       seconds(before.ru_stime), agent());
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[2] : "";
	int rounds;

	if (!strcmp(mode, "next")) {
		step = "after exec";
		if (agent())
			fail("the agent is there still");
		printf("private: exec\n");
		return 0;
	}
	if (argc < 3)
		fail("which device, and what?");
	open_device(argv[1]);
	if (!strcmp(mode, "plain"))
		look();
	else if (!strcmp(mode, "none")) {
		for (rounds = 0; rounds < 64; rounds++)
			copy_and_check(MEGABYTE);
		if (agent())
			fail("there is an agent");
	} else if (!strcmp(mode, "unshare"))
		in_a_new_namespace();
	else if (!strcmp(mode, "pid"))
		before_a_new_process_namespace();
	else if (!strcmp(mode, "fork"))
		across_fork();
	else if (!strcmp(mode, "stop"))
		stopped();
	else if (!strcmp(mode, "kill"))
		killed();
	else if (!strcmp(mode, "protect"))
		protected();
	else if (!strcmp(mode, "exec")) {
		with_agent();
		begin(FROM, TO, 4 * MEGABYTE);
		execl(argv[0], argv[0], argv[1], "next", NULL);
		fail("exec");
	} else if (!strcmp(mode, "exit") || !strcmp(mode, "abort")) {
		printf("private: agent %d\n", with_agent());
		fflush(stdout);
		begin(FROM, TO, 4 * MEGABYTE);
		if (*mode == 'a')
			raise(SIGKILL);
		return 0;
	} else if (!strcmp(mode, "bench"))
		bench(argc > 3 ? strtoul(argv[3], NULL, 0) : PIECE, argc > 4 ? atoi(argv[4]) : 16);
	else
		fail("%s is no mode", mode);
	printf("private: %s\n", mode);
	return 0;
}
