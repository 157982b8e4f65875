/* How long a node of xenstore takes to have a value, for `make footprint`: marks a phase for the counting plugin
 * (bench/count.c) and prints its nanoseconds, by the processor's clock.
 *
 *   until NODE VALUE start|appears COMMAND...
 *
 * Starts the command. The phase begins with it, or when the node appears; it ends when the node has the value. Then the
 * command has to end well. xenstored is spoken to over its socket as io/xs_wire.h has it: a program that is started for
 * each look would look too late.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

enum kind { READ = 2, WATCH = 4, WATCH_EVENT = 15, ERROR = 16 };

struct header {
	uint32_t kind, request, transaction, length;
};

/* XENSTORE_PAYLOAD_MAX */
#define PAYLOAD_MAX 4096

static int store;

static void fail(const char *what)
{
	fprintf(stderr, "until: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void mark(void)
{
	__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0x0e, 0x0b, 0x7d, 0x7a" ::: "memory");
}

static void put(const void *bytes, size_t length)
{
	if (write(store, bytes, length) != (ssize_t)length)
		fail("writing to xenstored");
}

static void get(void *bytes, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = read(store, (char *)bytes + done, length - done);

		if (n <= 0)
			fail("reading from xenstored");
		done += n;
	}
}

static void ask(enum kind kind, const char *words, size_t length)
{
	struct header header = { .kind = kind, .length = length };

	put(&header, sizeof(header));
	put(words, length);
}

/* The next message's kind, and its payload as a string. */
static enum kind hear(char payload[PAYLOAD_MAX + 1])
{
	struct header header;

	get(&header, sizeof(header));
	if (header.length > PAYLOAD_MAX) {
		errno = EMSGSIZE;
		fail("xenstored");
	}
	get(payload, header.length);
	payload[header.length] = 0;
	return header.kind;
}

/* The node's value; empty if it is not there. */
static void look(const char *node, char value[PAYLOAD_MAX + 1])
{
	enum kind kind;

	ask(READ, node, strlen(node) + 1);
	while ((kind = hear(value)) == WATCH_EVENT)
		;
	if (kind == ERROR)
		value[0] = 0;
}

static void watch(const char *node)
{
	static char words[PAYLOAD_MAX], answer[PAYLOAD_MAX + 1];
	int length = snprintf(words, sizeof(words), "%s%cw", node, 0);

	ask(WATCH, words, length + 1);
	while (hear(answer) != WATCH)
		;
}

static pid_t start(char **command)
{
	pid_t child = fork();

	if (child == 0) {
		/* What it says is not our answer. */
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execvp(command[0], command);
		fail(command[0]);
	}
	return child;
}

int main(int argc, char **argv)
{
	static char value[PAYLOAD_MAX + 1], event[PAYLOAD_MAX + 1];
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/xenstored/socket" };
	uint64_t began = 0;
	bool begun = false;
	int status;
	pid_t child;

	if (argc < 5) {
		fprintf(stderr, "usage: until NODE VALUE start|appears COMMAND...\n");
		return 1;
	}
	store = socket(AF_UNIX, SOCK_STREAM, 0);
	if (store < 0 || connect(store, (struct sockaddr *)&address, sizeof(address)))
		fail(address.sun_path);
	watch(argv[1]);
	if (strcmp(argv[3], "start") == 0) {
		mark();
		began = __rdtsc();
		begun = true;
	}
	child = start(argv + 4);
	for (;;) {
		look(argv[1], value);
		if (!begun && value[0]) {
			mark();
			began = __rdtsc();
			begun = true;
		}
		if (strcmp(value, argv[2]) == 0)
			break;
		while (hear(event) != WATCH_EVENT)
			;
	}
	printf("%llu\n", (unsigned long long)(__rdtsc() - began));
	mark();
	if (child < 0 || waitpid(child, &status, 0) < 0 || status) {
		fprintf(stderr, "until: %s did not end well\n", argv[4]);
		return 1;
	}
	return 0;
}
