/* A client of the usual kind, to be built with sanitizers: it maps registers, has threads and handlers of
 * its own, and ends with a leak if it is told to. It knows Linux and nothing of us. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(test)                                                                                \
	do {                                                                                       \
		if (!(test)) {                                                                     \
			fprintf(stderr, "sanitized.c:%d: %s\n", __LINE__, #test);                   \
			_exit(77);                                                                 \
		}                                                                                  \
	} while (0)

#define CONFIG (7ull << 40)
#define THREADS 3
#define ROUNDS 50

static volatile sig_atomic_t ticks, spoils;
static int ended;
static volatile uint64_t *sum;
/* Or it would be a data race. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void tick(int number)
{
	(void)number;
	if (spoils)
		errno = 42;
	ticks++;
}

static void *wait_for_tick(void *nothing)
{
	while (ticks == 0)
		usleep(100);
	__atomic_store_n(&ended, 1, __ATOMIC_RELEASE);
	return nothing;
}

static void *add(void *nothing)
{
	int i;

	for (i = 0; i < ROUNDS; i++) {
		CHECK(pthread_mutex_lock(&lock) == 0);
		sum[0] = 1;
		CHECK(pthread_mutex_unlock(&lock) == 0);
	}
	return nothing;
}

static void use_registers(void)
{
	uint32_t bind[4] = { 16, 0, 0, 0 };
	uint16_t command = 6;
	uint64_t copy[2], found;
	pthread_t threads[THREADS];
	int iommu, device, i;

	CHECK((iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC)) >= 0);
	CHECK((device = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC)) >= 0);
	bind[2] = (uint32_t)iommu;
	CHECK(ioctl(device, 0x3b76, bind) == 0);
	CHECK(pwrite(device, &command, sizeof(command), CONFIG + 4) == sizeof(command));
	sum = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
	CHECK(sum != MAP_FAILED);
	for (i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, add, NULL) == 0);
	for (i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	memcpy(copy, (const void *)sum, sizeof(copy));
	CHECK(pread(device, &found, sizeof(found), 0) == sizeof(found));
	CHECK(found == THREADS * ROUNDS && copy[0] == found && sum[0] == found);
}

/* By the end, no register and no stack remembers it. */
static __attribute__((noinline)) void lose(size_t size)
{
	void *volatile memory = malloc(size);

	CHECK(memory != NULL);
	memory = NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = tick };
	const char *end = argc > 1 ? argv[1] : "";
	pthread_t waiting;

	if (strcmp(end, "leak") == 0)
		lose(100);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	use_registers();
	/* A bug that a runtime which knows of the handler finds. */
	spoils = strcmp(end, "spoil") == 0;
	CHECK(pthread_create(&waiting, NULL, wait_for_tick, NULL) == 0);
	/* ThreadSanitizer may lose a signal, so one is not enough. */
	while (!__atomic_load_n(&ended, __ATOMIC_ACQUIRE)) {
		CHECK(pthread_kill(waiting, SIGUSR1) == 0);
		usleep(1000);
	}
	CHECK(pthread_join(waiting, NULL) == 0);
	puts("done");
	fflush(stdout);
	if (strcmp(end, "bus") == 0) {
		volatile char *past = mmap(NULL, 4096, PROT_READ, MAP_SHARED, memfd_create("empty", 0), 0);

		return past[0];
	}
	return 0;
}
