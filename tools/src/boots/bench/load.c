/* The load of `make bench`: keeps so many requests of one size in flight on a disk, past the page cache, and does nothing
 * else. usage: load DEVICE OPERATION PATTERN BYTES DEPTH REQUESTS
 *
 *   OPERATION  read | write | mixed (7 reads in 10) | flush (write, then a flush, one after the other)
 *   PATTERN    random | sequential
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
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#define DEPTH_MAX 256

static int disk;
static aio_context_t context;
static uint64_t places, random_state = 0x9e3779b97f4a7c15, at;
static size_t bytes;
static unsigned depth;
static const char *operation, *pattern;
static unsigned char *buffers;

static void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The counting plugin knows this no-op. */
static void mark(void)
{
	__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0x0e, 0x0b, 0x7d, 0x7a" ::: "memory");
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
	static struct iocb blocks[DEPTH_MAX];
	struct iocb *list[DEPTH_MAX];

	for (unsigned i = 0; i < count; i++) {
		list[i] = &blocks[slots[i]];
		*list[i] = (struct iocb){
			.aio_data = slots[i],
			.aio_lio_opcode = next_is_read() ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
			.aio_fildes = disk,
			.aio_buf = (uintptr_t)(buffers + slots[i] * bytes),
			.aio_nbytes = bytes,
			.aio_offset = next_place(),
		};
	}
	if (count && syscall(SYS_io_submit, context, count, list) != (long)count)
		fail("io_submit");
}

/* So many requests from an idle disk to an idle disk. */
static void queue(unsigned requests)
{
	struct io_event events[DEPTH_MAX];
	static unsigned slots[DEPTH_MAX];
	unsigned free = 0, sent, done = 0;

	while (free < depth && free < requests) {
		slots[free] = free;
		free++;
	}
	submit(slots, free);
	sent = free;
	while (done < requests) {
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
			if (sent < requests) {
				slots[free++] = events[i].data;
				sent++;
			}
		}
		submit(slots, free);
	}
}

static void flushes(unsigned requests)
{
	for (unsigned i = 0; i < requests; i++) {
		if (pwrite(disk, buffers, bytes, next_place()) != (ssize_t)bytes)
			fail("a write");
		if (fdatasync(disk))
			fail("a flush");
	}
}

int main(int argc, char **argv)
{
	void (*run)(unsigned);
	uint64_t size, began, ended;
	unsigned requests;

	if (argc != 7) {
		fprintf(stderr, "usage: load DEVICE OPERATION PATTERN BYTES DEPTH REQUESTS\n");
		return 1;
	}
	operation = argv[2];
	pattern = argv[3];
	bytes = strtoul(argv[4], NULL, 10);
	depth = strtoul(argv[5], NULL, 10);
	requests = strtoul(argv[6], NULL, 10);
	disk = open(argv[1], O_RDWR | O_DIRECT);
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size))
		fail(argv[1]);
	if (!bytes || depth < 1 || depth > DEPTH_MAX || size < bytes) {
		fprintf(stderr, "load: what shall that be?\n");
		return 1;
	}
	places = size / bytes;
	if (posix_memalign((void **)&buffers, 4096, bytes * depth))
		fail("memory");
	memset(buffers, 0xa5, bytes * depth);
	if (syscall(SYS_io_setup, depth, &context))
		fail("io_setup");
	run = operation[0] == 'f' ? flushes : queue;
	run(requests / 5);
	mark();
	began = __rdtsc();
	run(requests);
	ended = __rdtsc();
	mark();
	printf("%llu\n", (unsigned long long)(ended - began));
	return 0;
}
