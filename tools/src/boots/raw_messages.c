/*
 * A client of the control plane that shares no code with it: the messages of xen-devel's RFC of 2012 (built with -DRFC) or
 * of blktap (without), laid out here from the headers' text, sent as raw bytes, and every answer compared byte by byte.
 *
 *     raw-messages check SOCKET DOMAIN       the whole script, on a domain without VBDs
 *     raw-messages open SOCKET COUNT         so many disks of 16 KiB, minors from 0, each attached and opened
 *     raw-messages close SOCKET COUNT        closed and detached
 *     raw-messages pid SOCKET DOMAIN         one question
 *
 * Prints what differed and ends with 1; else prints how many answers were right.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TEXT 256

struct open_arguments {
	uint32_t flags;
	uint32_t devnum;
	uint32_t domid;
	char path[TEXT];
	uint32_t prt_devnum;
#ifndef RFC
	uint16_t req_timeout;
#endif
	char secondary[TEXT];
};

struct ring_arguments {
	uint32_t domid;
	uint32_t devid;
	uint32_t gref[8];
	uint32_t order;
	uint32_t proto;
	char pool[TEXT];
	uint32_t port;
#ifndef RFC
	uint32_t poll_duration;
	uint32_t poll_idle_threshold;
#endif
};

struct message {
	uint16_t type;
	uint16_t cookie;
	union {
		int32_t pid;
		struct open_arguments open;
		struct ring_arguments ring;
		struct {
			uint64_t sectors;
			uint32_t sector_size;
			uint32_t info;
		} image;
		struct {
			int32_t error;
			char text[TEXT];
		} response;
		struct {
			int32_t count;
			int32_t minor;
			int32_t state;
			char path[TEXT];
		} listed;
		struct {
			int32_t count;
			int32_t list[63];
		} minors;
		struct {
			uint16_t type;
			uint16_t cookie;
			uint64_t length;
		} info;
	} u;
};

#ifdef RFC
enum { DISK_INFO = 24, CONNECT = 26, DISCONNECT = 28 };
#define BYTES 536
/* The RFC answers these with their own response, whatever came of them. */
#define REFUSED(request) ((request) + 1)
#define SERVED 17
#define NO_RING 3
#else
enum { CONNECT = 24, DISCONNECT = 26, DISK_INFO = 28 };
#define BYTES 544
#define REFUSED(request) 1
#define NO_RING 19
#endif

enum {
	ERROR = 1, PID = 3, ATTACH = 5, OPEN = 7, PAUSE = 9, RESUME = 11, CLOSE = 13, DETACH = 15, LIST_MINORS = 17,
	LIST = 19, STATS = 21, FORCE_SHUTDOWN = 23, EXIT = 30,
};

_Static_assert(sizeof(struct message) == BYTES, "the size of a message");

static int line;
static unsigned right;

static void wrong(const char *what)
{
	printf("%s, after %u right answers\n", what, right);
	exit(1);
}

static void send_bytes(const void *bytes, size_t length)
{
	while (length > 0) {
		ssize_t sent = write(line, bytes, length);
		if (sent <= 0)
			wrong("the connection takes no more");
		bytes = (const char *)bytes + sent;
		length -= sent;
	}
}

static void receive_bytes(void *bytes, size_t length)
{
	while (length > 0) {
		ssize_t got = read(line, bytes, length);
		if (got <= 0)
			wrong("the connection ended");
		bytes = (char *)bytes + got;
		length -= got;
	}
}

static struct message message(uint16_t type, uint16_t cookie)
{
	struct message m;
	memset(&m, 0, sizeof(m));
	m.type = type;
	m.cookie = cookie;
	return m;
}

static struct message open_message(uint16_t type, uint16_t cookie, const char *path)
{
	struct message m = message(type, cookie);
	strcpy(m.u.open.path, path);
	m.u.open.prt_devnum = 0xffffffff;
	return m;
}

static struct message refusal(uint16_t type, uint16_t cookie, int error, const char *text)
{
	struct message m = message(type, cookie);
	m.u.response.error = error;
	strcpy(m.u.response.text, text);
	return m;
}

static struct message image(uint16_t type, uint16_t cookie, uint64_t sectors)
{
	struct message m = message(type, cookie);
	m.u.image.sectors = sectors;
	m.u.image.sector_size = 512;
	return m;
}

static struct message listed(uint16_t cookie, int count, int minor, int state, const char *path)
{
	struct message m = message(LIST + 1, cookie);
	m.u.listed.count = count;
	m.u.listed.minor = minor;
	m.u.listed.state = state;
	strcpy(m.u.listed.path, path);
	return m;
}

static void expect(struct message expected, const char *what)
{
	unsigned char got[BYTES];
	receive_bytes(got, BYTES);
	for (size_t i = 0; i < BYTES; i++) {
		if (got[i] == ((unsigned char *)&expected)[i])
			continue;
		printf("%s: byte %zu is %#x, not %#x; type %u, cookie %u, error %d, text '%.255s'\n", what, i, got[i],
		       ((unsigned char *)&expected)[i], got[0] | got[1] << 8, got[2] | got[3] << 8,
		       got[8] | got[9] << 8 | got[10] << 16 | got[11] << 24, (char *)got + 12);
		wrong(what);
	}
	right++;
}

static void ask(struct message request, struct message expected, const char *what)
{
	send_bytes(&request, BYTES);
	expect(expected, what);
}

static void refused(struct message request, uint16_t type, int error, const char *text)
{
	ask(request, refusal(type, request.cookie, error, text), text);
}

/* A request whose answer says no more than that it was done. */
static void done(uint16_t type, uint16_t cookie, const char *what)
{
	ask(message(type, cookie), message(type == FORCE_SHUTDOWN ? CLOSE + 1 : type + 1, cookie), what);
}

static void list_one(int minor, int state, const char *path, const char *what)
{
	ask(message(LIST, minor), listed(minor, 1, minor, state, path), what);
	expect(listed(minor, 0, -1, 0, ""), what);
}

static void pid(int domain)
{
	struct message expected = message(PID + 1, 0x1234);
	expected.u.pid = domain;
	ask(message(PID, 0x1234), expected, "pid");
}

static void stats(uint16_t minor)
{
	static const char head[] = "{ \"name\": \"ram:1M\", \"secs\": [ 0, 0 ], \"images\": [ { \"name\": \"1M\", ";
	unsigned char got[BYTES];
	struct message request = message(STATS, minor), expected = message(STATS + 1, minor);
	send_bytes(&request, BYTES);
	receive_bytes(got, BYTES);
	uint64_t length;
	memcpy(&length, got + 16, sizeof(length));
	expected.u.info.length = length;
	if (memcmp(got, &expected, BYTES) != 0 || length < sizeof(head) || length > 16384)
		wrong("stats: the answer");
	char *text = malloc(length);
	receive_bytes(text, length);
	if (memcmp(text, head, sizeof(head) - 1) != 0 || text[length - 1] != '}' || memchr(text, 0, length) != NULL)
		wrong("stats: the text");
	free(text);
	right++;
}

static void check(int domain)
{
	const uint16_t minor = 777;
	struct message m;

	pid(domain);
	ask(message(LIST, 9), listed(9, 0, -1, 0, ""), "list of nothing");
	refused(message(PAUSE, minor), REFUSED(PAUSE), 19, "minor 777: no such minor");
	refused(open_message(OPEN, minor, "ram:1M"), ERROR, 22, "minor 777: no such minor");
	done(ATTACH, minor, "attach");
	refused(message(ATTACH, minor), REFUSED(ATTACH), 17, "minor 777: attached already");
	refused(message(DISK_INFO, minor), ERROR, 19, "minor 777: no image was opened");
	refused(open_message(OPEN, minor, "floppy:x"), ERROR, 2, "target \"floppy:x\": type \"floppy\" is none of aio, raw, vhd, ram");
	ask(open_message(OPEN, minor, "ram:1M"), image(OPEN + 1, minor, 2048), "open");
	refused(open_message(OPEN, minor, "ram:1M"), ERROR, 114, "minor 777: open already");
	list_one(minor, 0, "ram:1M", "list of an open disk");
	ask(message(DISK_INFO, minor), image(DISK_INFO + 1, minor, 2048), "disk info");
	stats(minor);
	m = message(LIST_MINORS + 1, 0);
	m.u.minors.count = 1;
	m.u.minors.list[0] = minor;
	ask(message(LIST_MINORS, 0), m, "list minors");
	refused(open_message(RESUME, minor, ""), REFUSED(RESUME), 22, "minor 777: not paused");
	refused(message(DETACH, minor), REFUSED(DETACH), 16, "minor 777: still open");
	refused(message(EXIT, 0), ERROR, 16, "disks are attached");

	done(PAUSE, minor, "pause");
	done(PAUSE, minor, "pause again");
	list_one(minor, 0x2a, "ram:1M", "list of a paused disk");
	ask(message(DISK_INFO, minor), image(DISK_INFO + 1, minor, 2048), "disk info of a paused disk");
	refused(open_message(RESUME, minor, "ram:2M"), REFUSED(RESUME), 124,
		"target \"ram:2M\": 4096 sectors, but minor 777 has 2048");
	list_one(minor, 0x22a, "ram:1M", "list after a resume that failed");
	ask(open_message(RESUME, minor, "ram:1M"), message(RESUME + 1, minor), "resume");
	list_one(minor, 0, "ram:1M", "list after a resume");
	/* As blktap's tap-ctl says it: nothing but the minor. */
	done(PAUSE, minor, "pause a third time");
	done(RESUME, minor, "a resume of zeroes");

	m = message(DISCONNECT, 0);
	m.u.ring.domid = 99;
	m.u.ring.devid = 51712;
	refused(m, REFUSED(DISCONNECT), NO_RING, "domain 99: no such ring");
	m = message(CONNECT, minor);
	m.u.ring.order = 4;
	m.u.ring.proto = 3;
	refused(m, REFUSED(CONNECT), 22, "order: out of range");
	m = open_message(OPEN, minor, "");
	memset(m.u.open.path, 'p', TEXT);
	refused(m, ERROR, 22, "path: not terminated");
	refused(message(200, minor), ERROR, 22, "message type 200 is unknown");
	refused(message(PID + 1, minor), ERROR, 22, "minor 777: not a request");
#ifndef RFC
	refused(message(31, minor), ERROR, 38, "commit jobs are not offered");
#else
	refused(message(31, minor), ERROR, 22, "message type 31 is unknown");
#endif

	/* In pieces, as a slow writer would. */
	m = message(PID, 0x1234);
	send_bytes(&m, 1);
	send_bytes((char *)&m + 1, 199);
	usleep(100000);
	send_bytes((char *)&m + 200, BYTES - 200);
	m = message(PID + 1, 0x1234);
	m.u.pid = domain;
	expect(m, "a message in pieces");

	/* Many at once: more than a ring holds, both ways. */
	static struct message many[16];
	for (int i = 0; i < 16; i++)
		many[i] = message(DISK_INFO, minor);
	send_bytes(many, sizeof(many));
	for (int i = 0; i < 16; i++)
		expect(image(DISK_INFO + 1, minor, 2048), "sixteen at once");

	done(FORCE_SHUTDOWN, minor, "force shutdown");
	done(CLOSE, minor, "close");
	list_one(minor, 2, "", "list of a closed disk");
#ifndef RFC
	/* 256 bytes of a path follow, and then the next message. */
	m = open_message(OPEN, minor, "ram:1M");
	m.u.open.flags = 0x10;
	char log[TEXT] = "/log";
	send_bytes(&m, BYTES);
	send_bytes(log, TEXT);
	expect(refusal(ERROR, minor, 95, "ADD_LOG: not offered"), "open with a log");
#endif
	ask(open_message(OPEN, minor, "ram:1M"), image(OPEN + 1, minor, 2048), "open again");
	done(CLOSE, minor, "close again");
	done(DETACH, minor, "detach");
	refused(message(DETACH, minor), REFUSED(DETACH), 19, "minor 777: no such minor");
	refused(message(CLOSE, minor), REFUSED(CLOSE), 19, "minor 777: no such minor");
	ask(message(LIST, 9), listed(9, 0, -1, 0, ""), "list at the end");
}

/* As many messages as a page holds are sent before the first answer is read. */
static void group(int first, int end, uint16_t type)
{
	for (int minor = first; minor < end; minor++) {
		struct message m = open_message(type, minor, type == OPEN ? "ram:16K" : "");
		send_bytes(&m, BYTES);
	}
	for (int minor = first; minor < end; minor++)
		expect(type == OPEN ? image(OPEN + 1, minor, 32) : message(type + 1, minor), "many disks");
}

static void connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	line = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (line < 0 || connect(line, (struct sockaddr *)&address, sizeof(address)) != 0)
		wrong("no connection");
}

int main(int arguments, char **words)
{
	if (arguments != 4)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	connect_to(words[2]);
	int number = atoi(words[3]);
	if (strcmp(words[1], "check") == 0) {
		check(number);
	} else if (strcmp(words[1], "pid") == 0) {
		pid(number);
	} else if (strcmp(words[1], "open") == 0 || strcmp(words[1], "close") == 0) {
		int opens = words[1][0] == 'o';
		for (int first = 0; first < number; first += 7) {
			int end = first + 7 < number ? first + 7 : number;
			group(first, end, opens ? ATTACH : CLOSE);
			group(first, end, opens ? OPEN : DETACH);
		}
	} else {
		return 2;
	}
	printf("%u right answers\n", right);
	return 0;
}
