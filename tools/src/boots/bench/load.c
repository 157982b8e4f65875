/* The load of `make bench`: keeps so many requests of one size in flight on a disk, past the page cache, and does nothing
 * else. usage: load DEVICES OPERATION PATTERN BYTES DEPTH REQUESTS JOBS [each]
 *
 *   DEVICES    one, or some with commas between them: DEPTH is each one's, REQUESTS are of all
 *   OPERATION  read | write | mixed (7 reads in 10) | flush (write, then a flush, one after the other; one device)
 *   PATTERN    random | sequential
 *   JOBS       threads, each on a processor of its own, which share depth and requests between them
 *   each       also prints how long the requests took: of 1000 the 500th, 990th, 999th, and the longest; for depth 1
 *
 * A fifth of the requests go before the counted ones: caches are warm and the backend's threads awake then. Prints the
 * nanoseconds of the counted ones, by the processor's clock. Linux's own asynchronous I/O; what was answered together is
 * asked anew together, in one system call. The same seed every time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#define DISKS_MAX 8
#define DEPTH_MAX 256

#define JOBS_MAX 8

/* What all jobs share, set before there are any. */
static int disks[DISKS_MAX];
static unsigned disk_count, jobs, requests;
static uint64_t places;
static size_t bytes;
/* Requests in flight, of all disks; a slot is always the same disk's. */
static unsigned depth;
static const char *operation, *pattern;
static pthread_barrier_t together;

/* What each has. */
static __thread aio_context_t context;
static __thread uint64_t random_state, at;
static __thread unsigned char *buffers;

/* When each request of a single job was asked and answered, if that is wanted. */
static uint64_t *took;
static unsigned taken;

static void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The counting plugin knows these no-ops. */
static void mark(void)
{
	__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0x0e, 0x0b, 0x7d, 0x7a" ::: "memory");
}

static void lap(void)
{
	__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0x0f, 0x0b, 0x7d, 0x7a" ::: "memory");
}

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state >> 11;
}

static uint64_t next_place(void)
{
	return (pattern[0] == 'r' ? next_random() : at++) % places * bytes;
}

static int next_is_read(void)
{
	return operation[0] == 'r' || (operation[0] == 'm' && next_random() % 10 < 7);
}

static void submit(const unsigned *slots, unsigned count)
{
	static __thread struct iocb blocks[DEPTH_MAX];
	struct iocb *list[DEPTH_MAX];

	for (unsigned i = 0; i < count; i++) {
		list[i] = &blocks[slots[i]];
		*list[i] = (struct iocb){
			.aio_data = slots[i],
			.aio_lio_opcode = next_is_read() ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
			.aio_fildes = disks[slots[i] % disk_count],
			.aio_buf = (uintptr_t)(buffers + slots[i] * bytes),
			.aio_nbytes = bytes,
			.aio_offset = next_place(),
		};
	}
	if (count && syscall(SYS_io_submit, context, count, list) != (long)count)
		fail("io_submit");
}

/* So many requests from an idle disk to an idle disk. */
static void queue(unsigned wanted)
{
	struct io_event events[DEPTH_MAX];
	static __thread unsigned slots[DEPTH_MAX];
	unsigned free = 0, sent, done = 0;

	while (free < depth && free < wanted) {
		slots[free] = free;
		free++;
	}
	submit(slots, free);
	sent = free;
	while (done < wanted) {
		long n = syscall(SYS_io_getevents, context, 1, depth, events, NULL);

		if (n < 0)
			fail("io_getevents");
		done += n;
		free = 0;
		for (long i = 0; i < n; i++) {
			if (events[i].res != (long long)bytes) {
				errno = -events[i].res;
				fail("a request");
			}
			if (sent < wanted) {
				slots[free++] = events[i].data;
				sent++;
			}
		}
		submit(slots, free);
	}
}

static void flushes(unsigned wanted)
{
	for (unsigned i = 0; i < wanted; i++) {
		if (pwrite(disks[0], buffers, bytes, next_place()) != (ssize_t)bytes)
			fail("a write");
		if (fdatasync(disks[0]))
			fail("a flush");
	}
}

/* Places are those of the smallest disk. */
static void open_all(char *names)
{
	uint64_t size, smallest = UINT64_MAX;

	for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
		int disk = open(name, O_RDWR | O_DIRECT);

		if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size))
			fail(name);
		if (disk_count == DISKS_MAX) {
			errno = E2BIG;
			fail(name);
		}
		disks[disk_count++] = disk;
		smallest = size < smallest ? size : smallest;
	}
	places = smallest / bytes;
}

/* One after the other. */
static void each(unsigned wanted)
{
	unsigned slot = 0;

	for (unsigned i = 0; i < wanted; i++) {
		struct io_event event;
		uint64_t began;

		lap();
		began = __rdtsc();
		submit(&slot, 1);
		if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1 || event.res != (long long)bytes)
			fail("a request");
		took[taken++] = __rdtsc() - began;
		lap();
	}
}

static int longer(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void *job(void *number)
{
	unsigned which = (uintptr_t)number;
	void (*run)(unsigned) = operation[0] == 'f' ? flushes : queue;
	uint64_t began = 0;
	cpu_set_t processor;

	CPU_ZERO(&processor);
	CPU_SET(which, &processor);
	if (jobs > 1 && sched_setaffinity(0, sizeof(processor), &processor))
		fail("sched_setaffinity");
	random_state = 0x9e3779b97f4a7c15 + which;
	at = places / jobs * which;
	if (posix_memalign((void **)&buffers, 4096, bytes * depth))
		fail("memory");
	memset(buffers, 0xa5, bytes * depth);
	if (syscall(SYS_io_setup, depth, &context))
		fail("io_setup");
	run(requests / 5);
	if (took)
		run = each;
	pthread_barrier_wait(&together);
	if (which == 0) {
		mark();
		began = __rdtsc();
	}
	pthread_barrier_wait(&together);
	run(requests);
	pthread_barrier_wait(&together);
	if (which == 0) {
		began = __rdtsc() - began;
		mark();
		printf("%llu", (unsigned long long)began);
	}
	return NULL;
}

static unsigned number(const char *text)
{
	return strtoul(text, NULL, 10);
}

int main(int argc, char **argv)
{
	pthread_t threads[JOBS_MAX];

	if (argc != 8 && argc != 9) {
		fprintf(stderr, "usage: load DEVICES OPERATION PATTERN BYTES DEPTH REQUESTS JOBS [each]\n");
		return 1;
	}
	operation = argv[2];
	pattern = argv[3];
	bytes = number(argv[4]);
	jobs = number(argv[7]);
	if (bytes)
		open_all(argv[1]);
	if (!places || jobs < 1 || jobs > JOBS_MAX) {
		fprintf(stderr, "load: what shall that be?\n");
		return 1;
	}
	depth = number(argv[5]) * disk_count / jobs;
	requests = number(argv[6]) / jobs;
	if (depth < 1 || depth > DEPTH_MAX || (argc == 9 && depth > 1)) {
		fprintf(stderr, "load: so many cannot be in flight\n");
		return 1;
	}
	if (argc == 9 && !(took = calloc(requests, sizeof(*took))))
		fail("memory");
	if (pthread_barrier_init(&together, NULL, jobs))
		fail("pthread_barrier_init");
	for (uintptr_t i = 1; i < jobs; i++) {
		if (pthread_create(&threads[i], NULL, job, (void *)i))
			fail("pthread_create");
	}
	job(0);
	for (unsigned i = 1; i < jobs; i++)
		pthread_join(threads[i], NULL);
	if (took) {
		qsort(took, taken, sizeof(*took), longer);
		for (unsigned share = 500; share <= 999; share += share == 500 ? 490 : 9)
			printf(" %llu", (unsigned long long)took[(uint64_t)taken * share / 1000]);
		printf(" %llu", (unsigned long long)took[taken - 1]);
	}
	printf("\n");
	return 0;
}
