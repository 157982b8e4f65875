/*
 * Reads a chain of VHD images by libvhdi (https://github.com/libyal/libvhdi), which knows differencing disks and shares no
 * code with us, and writes what its leaf holds to a file: read-chain OUT LEAF [PARENT...].
 *
 * libvhdi takes any image for a parent, so that the child means this one is checked here.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libvhdi.h>

enum { DEPTH_MAX = 16, PART = 1 << 20 };

static void fail(const char *name, const char *what, libvhdi_error_t *error)
{
	fprintf(stderr, "read-chain: %s: %s\n", name, what);
	if (error != NULL)
		libvhdi_error_backtrace_fprint(error, stderr);
	exit(1);
}

int main(int count, char **words)
{
	static uint8_t part[PART], zeroes[PART];
	libvhdi_file_t *files[DEPTH_MAX] = {NULL};
	libvhdi_error_t *error = NULL;
	int depth = count - 2;
	if (depth < 1 || depth > DEPTH_MAX) {
		fprintf(stderr, "read-chain OUT LEAF [PARENT...]\n");
		return 2;
	}
	char **names = words + 2;
	for (int at = 0; at < depth; at++) {
		if (libvhdi_file_initialize(&files[at], &error) != 1 ||
		    libvhdi_file_open(files[at], names[at], LIBVHDI_OPEN_READ, &error) != 1)
			fail(names[at], "libvhdi does not open it", error);
	}
	for (int at = 0; at + 1 < depth; at++) {
		uint8_t wanted[16], found[16];
		if (libvhdi_file_get_parent_identifier(files[at], wanted, sizeof wanted, &error) != 1 ||
		    libvhdi_file_get_identifier(files[at + 1], found, sizeof found, &error) != 1)
			fail(names[at], "no identifiers", error);
		if (memcmp(wanted, found, sizeof wanted) != 0)
			fail(names[at], "it is not a child of the next", NULL);
		if (libvhdi_file_set_parent_file(files[at], files[at + 1], &error) != 1)
			fail(names[at], "libvhdi does not take its parent", error);
	}
	uint32_t kind;
	if (libvhdi_file_get_disk_type(files[depth - 1], &kind, &error) != 1 || kind == LIBVHDI_DISK_TYPE_DIFFERENTIAL)
		fail(names[depth - 1], "the last one has a parent too", error);

	size64_t size;
	if (libvhdi_file_get_media_size(files[0], &size, &error) != 1)
		fail(names[0], "no size", error);
	int out = open(words[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (out < 0 || ftruncate(out, (off_t)size) != 0)
		fail(words[1], "cannot be written", NULL);
	for (off64_t at = 0; at < (off64_t)size;) {
		size_t wanted = (off64_t)size - at < PART ? (size_t)((off64_t)size - at) : PART;
		ssize_t here = libvhdi_file_read_buffer_at_offset(files[0], part, wanted, at, &error);
		if (here <= 0)
			fail(names[0], "libvhdi does not read it", error);
		/* Holes take no memory. */
		if (memcmp(part, zeroes, (size_t)here) != 0 && pwrite(out, part, (size_t)here, at) != here)
			fail(words[1], "cannot be written", NULL);
		at += here;
	}
	if (close(out) != 0)
		fail(words[1], "cannot be written", NULL);
	printf("%llu bytes of %d images\n", (unsigned long long)size, depth);
	return 0;
}
