/* A program that maps the registers of the test's device (machine.rs), as any driver in C would. It knows
 * Linux and nothing of us. Each part is a claim; the exit status is 0 or the line that failed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(test)                                                                    \
	do {                                                                           \
		if (!(test)) {                                                         \
			fprintf(stderr, "mapped.c:%d: %s (%s)\n", __LINE__, #test,     \
				strerror(errno));                                      \
			_exit(77);                                                     \
		}                                                                      \
	} while (0)

#define BIND_IOMMUFD 0x3b76
#define GET_REGION_INFO 0x3b6c
#define DEVICE_RESET 0x3b6f
#define CONFIG (7ULL << 40)
#define PORTAL (2ULL << 40)

/* The device: machine.rs says what these do. */
#define SUM 0x0
#define SCRATCH 0x100
#define LAST_SIZE 0x208
#define STORES 0x210
#define STORED 0x218
#define TAKEN 0x220

static int iommufd, fd;
static volatile uint8_t *bar0, *bar2;

#define REG(type, offset) (*(volatile type *)(bar0 + (offset)))

static void set_memory(int on)
{
	uint16_t command = on ? 6 : 4;

	CHECK(pwrite(fd, &command, 2, CONFIG + 4) == 2);
}

static void open_device(void)
{
	uint32_t bind[4] = { 16 };

	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	CHECK(iommufd >= 0);
	fd = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
	bind[2] = iommufd;
	CHECK(ioctl(fd, BIND_IOMMUFD, bind) == 0);
	set_memory(1);
}

static void *map(uint64_t offset, size_t length)
{
	void *at = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

	CHECK(at != MAP_FAILED);
	return at;
}

static void map_device(void)
{
	open_device();
	bar0 = map(0, 0x4000);
	bar2 = map(PORTAL, 0x4000);
}

static void movdir64b(volatile void *portal, const void *descriptor)
{
	/* movdir64b rax, [rdx]: processors that do not know it raise SIGILL. */
	asm volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x02" ::"a"(portal), "d"(descriptor) : "memory");
}

static int enqcmd(volatile void *portal, const void *descriptor)
{
	uint8_t retry;

	asm volatile(".byte 0xf2, 0x0f, 0x38, 0xf8, 0x02; setz %0"
		     : "=r"(retry)
		     : "a"(portal), "d"(descriptor)
		     : "memory");
	return retry;
}

/* Every size of access reaches the device as one access of that size. */
static void accesses(void)
{
	uint8_t bytes[64], back[64];
	int i;

	map_device();
	REG(uint8_t, SCRATCH) = 0x12;
	CHECK(REG(uint32_t, LAST_SIZE) == 1);
	REG(uint16_t, SCRATCH + 2) = 0x3456;
	CHECK(REG(uint32_t, LAST_SIZE) == 2);
	REG(uint32_t, SCRATCH + 4) = 0x789abcde;
	CHECK(REG(uint32_t, LAST_SIZE) == 4);
	REG(uint64_t, SCRATCH + 8) = 0xfedcba9876543210;
	CHECK(REG(uint32_t, LAST_SIZE) == 8);
	CHECK(REG(uint8_t, SCRATCH) == 0x12);
	CHECK(REG(uint16_t, SCRATCH + 2) == 0x3456);
	CHECK(REG(uint64_t, SCRATCH) == 0x789abcde34560012);
	/* Values that look like errors of a system call. */
	for (i = 0; i < 64; i += 8)
		REG(uint64_t, SCRATCH + i) = -1 - i;
	for (i = 0; i < 64; i += 8)
		CHECK(REG(uint64_t, SCRATCH + i) == (uint64_t)(-1 - i));
	REG(uint32_t, SCRATCH) += 5;
	CHECK(REG(uint64_t, SCRATCH) == 0xffffffff00000004);
	REG(uint32_t, SCRATCH) |= 0xf0;
	CHECK(REG(uint32_t, SCRATCH) == 0xf4);
	for (i = 0; i < 64; i++)
		bytes[i] = 3 * i + 1;
	memcpy((void *)(bar0 + SCRATCH), bytes, 64);
	memcpy(back, (void *)(bar0 + SCRATCH), 64);
	CHECK(memcmp(bytes, back, 64) == 0);
	for (i = 0; i < 64; i++)
		CHECK(REG(uint8_t, SCRATCH + i) == bytes[i]);
	memset((void *)(bar0 + SCRATCH), 0x5a, 64);
	CHECK(REG(uint64_t, SCRATCH + 56) == 0x5a5a5a5a5a5a5a5a);
	errno = 1234;
	(void)REG(uint32_t, SCRATCH);
	CHECK(errno == 1234);

	/* What the descriptor does, the mapping shows, and the other way round. */
	CHECK(pwrite(fd, bytes, 8, SCRATCH) == 8);
	CHECK(REG(uint64_t, SCRATCH) == *(uint64_t *)bytes);

	/* 64 bytes are one store. */
	_Alignas(64) uint8_t descriptor[64] = { 7 };
	movdir64b(bar2, descriptor);
	movdir64b(bar2 + 64, descriptor);
	CHECK(REG(uint64_t, STORES) == 2 && REG(uint64_t, STORED) == 14);
	CHECK(enqcmd(bar2, descriptor) == 0);
	CHECK(enqcmd(bar2, descriptor) == 1);
	CHECK(REG(uint64_t, TAKEN) == 1);
}

/* What cannot be mapped is refused as Linux refuses it. */
static void refused(void)
{
	open_device();
#define NO(length, prot, flags, offset)                                                \
	CHECK(mmap(0, length, prot, flags, fd, offset) == MAP_FAILED && errno == EINVAL)
	NO(4096, PROT_READ, MAP_PRIVATE, 0);
	NO(0x5000, PROT_READ, MAP_SHARED, 0);
	NO(4096, PROT_READ, MAP_SHARED, 0x4000);
	NO(4096, PROT_READ, MAP_SHARED, 1ULL << 40);
	NO(4096, PROT_READ, MAP_SHARED, CONFIG);
	NO(4096, PROT_READ, MAP_SHARED, 9ULL << 40);
	NO(0, PROT_READ, MAP_SHARED, 0);
	CHECK(map(0x1000, 0x3000));
	/* At a fixed address, in parts, moved and unmapped. */
	void *fixed = (void *)0x200000000000;
	CHECK(mmap(fixed, 0x4000, 3, MAP_SHARED | MAP_FIXED, fd, 0) == fixed);
	bar0 = fixed;
	REG(uint64_t, SUM) = 5;
	CHECK(REG(uint64_t, SUM) == 5);
	CHECK(munmap(fixed + 0x1000, 0x3000) == 0);
	bar0 = mremap(fixed, 0x1000, 0x1000, MREMAP_MAYMOVE | MREMAP_FIXED, fixed + 0x100000);
	CHECK(bar0 == fixed + 0x100000);
	CHECK(REG(uint64_t, SUM) == 5);
}

/* A mapping keeps the device open after the last descriptor is gone. */
static void outlives(void)
{
	uint32_t bind[4] = { 16 };
	int again;

	map_device();
	REG(uint64_t, SUM) = 7;
	CHECK(close(fd) == 0);
	CHECK(REG(uint64_t, SUM) == 7);
	again = open("/dev/vfio/devices/vfio0", O_RDWR);
	CHECK(again >= 0);
	bind[2] = iommufd;
	CHECK(ioctl(again, BIND_IOMMUFD, bind) == -1);
	CHECK(munmap((void *)bar0, 0x4000) == 0);
	CHECK(ioctl(again, BIND_IOMMUFD, bind) == -1);
	CHECK(munmap((void *)bar2, 0x4000) == 0);
	CHECK(ioctl(again, BIND_IOMMUFD, bind) == 0);
	fd = again;
	set_memory(1);
	bar0 = map(0, 0x4000);
	CHECK(REG(uint64_t, SUM) == 0);
}

static sigjmp_buf jump;
static volatile int faults;
static volatile int last_signal, last_code;
static void *volatile last_address;

static void jumper(int number, siginfo_t *info, void *context)
{
	(void)context;
	faults++;
	last_signal = number;
	last_code = info->si_code;
	last_address = info->si_addr;
	siglongjmp(jump, 1);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags }, back;

	sigaddset(&action.sa_mask, SIGUSR1);
	CHECK(sigaction(number, &action, NULL) == 0);
	CHECK(sigaction(number, NULL, &back) == 0);
	CHECK(back.sa_sigaction == handler && (back.sa_flags & SA_SIGINFO));
	CHECK(sigismember(&back.sa_mask, SIGUSR1) == 1);
}

static int status_of(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child);
	return status;
}

static int truncated_fd;
static char *truncated;

static void extender(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	faults++;
	last_address = info->si_addr;
	CHECK(ftruncate(truncated_fd, 4096) == 0);
}

/* The program's own faults are the program's. */
static void own_handlers(void)
{
	char *guard = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t child;
	sigset_t set;
	int i;

	map_device();
	CHECK(mprotect(guard + 4096, 4096, PROT_NONE) == 0);
	handle(SIGSEGV, jumper, 0);
	for (i = 0; i < 10; i++) {
		if (sigsetjmp(jump, 1) == 0) {
			*(volatile char *)(guard + 4096 + i) = 1;
			CHECK(0);
		}
		CHECK(last_signal == SIGSEGV && last_address == guard + 4096 + i);
		REG(uint64_t, SUM) = 1;
	}
	CHECK(faults == 10 && REG(uint64_t, SUM) == 10);

	/* A truncated file of its own. */
	truncated_fd = memfd_create("own", 0);
	truncated = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, truncated_fd, 0);
	CHECK(truncated != MAP_FAILED);
	handle(SIGBUS, extender, 0);
	faults = 0;
	*(volatile char *)(truncated + 17) = 3;
	CHECK(faults == 1 && last_address == truncated + 17 && truncated[17] == 3);
	REG(uint64_t, SUM) = 1;
	CHECK(REG(uint64_t, SUM) == 11 && faults == 1);

	/* Illegal instructions. */
	handle(SIGILL, jumper, 0);
	if (sigsetjmp(jump, 1) == 0)
		asm volatile("ud2");
	CHECK(last_signal == SIGILL);

	/* From registers to memory that is not there, and back. */
	handle(SIGSEGV, jumper, 0);
	if (sigsetjmp(jump, 1) == 0) {
		void *to = guard + 4096, *from = (void *)(bar0 + SCRATCH);

		asm volatile("movsl" : "+D"(to), "+S"(from) : : "memory");
		CHECK(0);
	}
	CHECK(last_signal == SIGSEGV && last_address == guard + 4096);

	/* Memory that the device does not decode is a bus error, and the handler may jump. */
	handle(SIGBUS, jumper, 0);
	set_memory(0);
	if (sigsetjmp(jump, 1) == 0) {
		(void)REG(uint32_t, SCRATCH);
		CHECK(0);
	}
	CHECK(last_signal == SIGBUS && last_address == bar0 + SCRATCH && last_code == BUS_ADRERR);
	set_memory(1);
	CHECK(REG(uint64_t, SUM) == 11);

	/* Signals that are sent are delivered, or ignored. */
	handle(SIGBUS, jumper, SA_RESETHAND);
	if (sigsetjmp(jump, 1) == 0)
		raise(SIGBUS);
	CHECK(last_signal == SIGBUS);
	CHECK(signal(SIGBUS, SIG_IGN) == SIG_DFL);
	raise(SIGBUS);
	CHECK(signal(SIGBUS, SIG_DFL) == SIG_IGN);

	/* A blocked signal does not make an access deadly. */
	sigfillset(&set);
	CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
	REG(uint64_t, SUM) = 1;
	CHECK(REG(uint64_t, SUM) == 12);
	sigemptyset(&set);
	CHECK(sigprocmask(SIG_SETMASK, &set, NULL) == 0);

	/* Without a handler each of them ends the program. */
	for (i = 0; i < 4; i++) {
		static const int expected[4] = { SIGBUS, SIGSEGV, SIGBUS, SIGILL };
		int status;

		child = fork();
		if (child == 0) {
			signal(SIGSEGV, SIG_DFL);
			signal(SIGILL, SIG_DFL);
			signal(SIGBUS, SIG_DFL);
			if (i == 0) {
				set_memory(0);
				(void)REG(uint32_t, SCRATCH);
			}
			if (i == 1)
				*(volatile char *)(guard + 4096) = 1;
			if (i == 2)
				raise(SIGBUS);
			if (i == 3)
				asm volatile("ud2");
			_exit(0);
		}
		status = status_of(child);
		set_memory(1);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == expected[i]);
	}
}

#define ROUNDS 400

static void *hammer(void *nothing)
{
	int i;

	(void)nothing;
	for (i = 0; i < ROUNDS; i++)
		REG(uint64_t, SUM) = 1;
	return NULL;
}

static volatile int ticks;

static void tick(int number)
{
	(void)number;
	/* Two threads can be in here at a time. */
	__atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
	REG(uint64_t, SUM) = 1;
}

/* Threads and signals at a high rate lose no access and repeat none. */
static void concurrent(void)
{
	struct itimerval timer = { { 0, 200 }, { 0, 200 } }, off = { 0 };
	struct sigaction action = { .sa_handler = tick };
	pthread_t threads[4];
	int i;

	map_device();
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
	for (i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], NULL, hammer, NULL) == 0);
	hammer(NULL);
	for (i = 0; i < 4; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
	CHECK(ticks > 0);
	CHECK(REG(uint64_t, SUM) == 5 * ROUNDS + (uint64_t)ticks);
}

/* A posted store is not lost, whatever else the program does. */
static void submissions(void)
{
	_Alignas(64) uint8_t descriptor[64] = { 1 };
	int i;

	map_device();
	for (i = 0; i < 10000; i++)
		movdir64b(bar2, descriptor);
	CHECK(REG(uint64_t, STORES) == 10000 && REG(uint64_t, STORED) == 10000);
}

/* Children have the mapping, whatever way they were made; what replaces a program maps anew. */
static void children(const char *self)
{
	pid_t child;
	int i;

	map_device();
	for (i = 0; i < 3; i++) {
		child = fork();
		if (child == 0) {
			pid_t grandchild = fork();

			REG(uint64_t, SUM) = 1;
			if (grandchild == 0)
				_exit(0);
			_exit(status_of(grandchild) != 0);
		}
		CHECK(status_of(child) == 0);
	}
	CHECK(REG(uint64_t, SUM) == 6);
	/* A child of vfork that sets signals as shells do changes nothing for its parent. */
	child = vfork();
	if (child == 0) {
		signal(SIGBUS, SIG_IGN);
		signal(SIGBUS, SIG_DFL);
		_exit(0);
	}
	CHECK(status_of(child) == 0);
	child = vfork();
	if (child == 0) {
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	CHECK(status_of(child) == 0);
	CHECK(system("true") == 0);
	REG(uint64_t, SUM) = 1;
	CHECK(REG(uint64_t, SUM) == 7);
	execl(self, self, "accesses", NULL);
	CHECK(0);
}

/* The page that a process shares with its session (crates/preload/src/page.rs). */
struct slot {
	_Atomic uint32_t state, shape;
	_Atomic uint64_t address, data[8];
} __attribute__((aligned(128)));

#define SLOTS 16
#define ASKED 2
#undef TAKEN
#define TAKEN 3
#define DONE 4
#define FAILED 5
#define LOAD 0
#define STORE 1

/* The slots, once the process has made some accesses; NULL if its accesses are caught otherwise. */
static struct slot *slots(void)
{
	uint64_t start;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");

	CHECK(maps);
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "/memfd:registers") && sscanf(line, "%lx-", &start) == 1) {
			fclose(maps);
			return (struct slot *)(start + 128);
		}
	fclose(maps);
	return NULL;
}

static void rapid(int rounds)
{
	while (rounds-- > 0)
		REG(uint64_t, SUM) = 1;
}

static void *in_order(void *own)
{
	uintptr_t at = SCRATCH + 8 * (uintptr_t)own;
	uint64_t i;

	for (i = 0; i < 3000; i++) {
		REG(uint64_t, at) = i;
		CHECK(REG(uint64_t, at) == i);
	}
	rapid(1000);
	return NULL;
}

static volatile int stop;

static void *scribble(void *page)
{
	uint32_t random = 1;

	while (!stop) {
		random = random * 1664525 + 1013904223;
		((_Atomic uint32_t *)page)[random >> 20 & 511] = random >> 8 & 7;
		((_Atomic uint32_t *)page)[random >> 16 & 511] = random;
	}
	return NULL;
}

/* Accesses that follow one another closely, by threads, children and programs that are killed. */
static void rapidly(const char *self)
{
	struct timespec nap = { 0, 3000000 };
	pthread_t threads[20];
	struct slot *page;
	uint64_t sum;
	uintptr_t i;
	pid_t child;
	int n;

	map_device();
	/* More threads than slots. */
	for (i = 0; i < 20; i++)
		CHECK(pthread_create(&threads[i], NULL, in_order, (void *)i) == 0);
	for (i = 0; i < 20; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	sum = 20 * 1000;
	CHECK(REG(uint64_t, SUM) == sum);
	page = slots();

	/* A child has no page of its parent's, gets its own, and both lose nothing. */
	child = fork();
	if (child == 0) {
		CHECK(!slots());
		rapid(2000);
		CHECK(!slots() == !page);
		_exit(0);
	}
	rapid(2000);
	CHECK(status_of(child) == 0);
	sum += 4000;
	CHECK(REG(uint64_t, SUM) == sum);

	/* One that is killed in the middle leaves nothing stuck. */
	for (n = 0; n < 20; n++) {
		child = fork();
		if (child == 0)
			for (;;)
				REG(uint64_t, SCRATCH) = 1;
		CHECK(nanosleep(&nap, NULL) == 0);
		CHECK(kill(child, SIGKILL) == 0);
		CHECK(WIFSIGNALED(status_of(child)));
		rapid(20);
		sum += 20;
	}
	CHECK(REG(uint64_t, SUM) == sum);

	/* One that stops in the middle goes on. */
	child = fork();
	if (child == 0) {
		rapid(2000);
		_exit(0);
	}
	for (n = 0; n < 5; n++) {
		CHECK(kill(child, SIGSTOP) == 0);
		CHECK(nanosleep(&nap, NULL) == 0);
		CHECK(kill(child, SIGCONT) == 0);
	}
	CHECK(status_of(child) == 0);
	sum += 2000;
	CHECK(REG(uint64_t, SUM) == sum);
	execl(self, self, "accesses", NULL);
	CHECK(0);
}

/* A question in the page, as a hostile program would write it: its state when it is answered. */
static uint32_t put(struct slot *slot, uint32_t shape, const volatile void *address)
{
	time_t end = time(NULL) + 60;

	slot->shape = shape;
	slot->address = (uintptr_t)address;
	slot->state = ASKED;
	while (slot->state == ASKED || slot->state == TAKEN) {
		/* What makes the session look. */
		(void)REG(uint64_t, LAST_SIZE);
		CHECK(time(NULL) < end);
	}
	return slot->state;
}

/* What a program writes into its page is looked at once, and does nothing that an access could not. */
static void hostile(void)
{
	static uint64_t own = 7;
	struct slot *page, *last;
	pthread_t thread;
	uint64_t sum;
	pid_t child;

	map_device();
	rapid(100);
	page = slots();
	if (!page)
		return;
	/* The program's own accesses begin elsewhere, and slots are many. */
	last = page + SLOTS - 1;
	CHECK(put(last, STORE | 8 << 8, bar0 + SCRATCH) == DONE);
	last->data[0] = 99;
	CHECK(put(last, STORE | 8 << 8, bar0 + SCRATCH) == DONE);
	CHECK(put(last, LOAD | 8 << 8, bar0 + SCRATCH) == DONE && last->data[0] == 99);
	/* No shape, no register, no room, not mapped for it. */
	CHECK(put(last, 0xffffffff, bar0 + SCRATCH) == FAILED);
	CHECK(put(last, LOAD, bar0 + SCRATCH) == FAILED);
	CHECK(put(last, STORE | 65 << 8, bar0 + SCRATCH) == FAILED);
	CHECK(put(last, 3 | 8 << 8, bar0 + SCRATCH) == FAILED);
	CHECK(put(last, 4 | 1 << 8, bar0 + SCRATCH) == FAILED);
	CHECK(put(last, STORE | 8 << 8, &own) == FAILED && own == 7);
	CHECK(put(last, LOAD | 8 << 8, NULL) == FAILED);
	CHECK(put(last, LOAD | 8 << 8, bar0 + 0x4000 - 4) == FAILED);
	CHECK(mprotect((void *)bar2, 0x4000, PROT_READ) == 0);
	CHECK(put(last, STORE | 64 << 8, bar2) == FAILED && put(last, 2 | 64 << 8, bar2) == FAILED);
	last->state = 0;
	sum = REG(uint64_t, SUM);
	CHECK(sum == 100);

	/* Somebody who writes what comes to mind harms itself alone. */
	child = fork();
	if (child == 0) {
		alarm(1);
		rapid(100);
		page = slots();
		CHECK(page);
		CHECK(pthread_create(&thread, NULL, scribble, (char *)page - 128) == 0);
		for (;;)
			(void)REG(uint64_t, SCRATCH);
	}
	for (own = 0; own < 2000; own++) {
		REG(uint64_t, SCRATCH) = own;
		(void)REG(uint64_t, SCRATCH + 8);
	}
	CHECK(WIFSIGNALED(status_of(child)));
	REG(uint64_t, SCRATCH) = 5;
	CHECK(REG(uint64_t, SCRATCH) == 5);
	rapid(1000);
}

/* Without traps no region says that it can be mapped. */
static void off(void)
{
	uint32_t info[16] = { sizeof(info) };

	open_device();
	CHECK(ioctl(fd, GET_REGION_INFO, info) == 0);
	CHECK((info[1] & 4) == 0);
	CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
}

int main(int argc, char **argv)
{
	const char *part = argc > 1 ? argv[1] : "";

	if (!strcmp(part, "accesses"))
		accesses();
	else if (!strcmp(part, "refused"))
		refused();
	else if (!strcmp(part, "outlives"))
		outlives();
	else if (!strcmp(part, "own-handlers"))
		own_handlers();
	else if (!strcmp(part, "concurrent"))
		concurrent();
	else if (!strcmp(part, "submissions"))
		submissions();
	else if (!strcmp(part, "children"))
		children(argv[0]);
	else if (!strcmp(part, "rapidly"))
		rapidly(argv[0]);
	else if (!strcmp(part, "hostile"))
		hostile();
	else if (!strcmp(part, "off"))
		off();
	else
		CHECK(0);
	return 0;
}
