/*
 * The message structures of both dialects, transcribed from the headers, for a C compiler to lay out.
 *
 * Compiled once with -DRFC and once without. Prints
 *     size NAME BYTES
 *     field NAME OFFSET BYTES       (of a whole message)
 *     message NAME HEX              (a whole message with distinctive values)
 * and the test compares. Nothing here knows the Rust code.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#define LENGTH 256
#define MAX_MINORS ((LENGTH / sizeof(int)) - 1)

struct params {
	uint32_t flags;
	uint32_t devnum;
	uint32_t domid;
	char path[LENGTH];
	uint32_t prt_devnum;
#ifndef RFC
	uint16_t req_timeout;
#endif
	char secondary[LENGTH];
};

struct image {
	uint64_t sectors;
	uint32_t sector_size;
	uint32_t info;
};

struct string {
	char text[LENGTH];
};

struct response {
	int error;
	char message[LENGTH];
};

struct minors {
	int count;
	int list[MAX_MINORS];
};

struct list {
	int count;
	int minor;
	int state;
	char path[LENGTH];
};

struct stat_ {
	uint16_t type;
	uint16_t cookie;
	size_t length;
};

struct blkif {
	uint32_t domid;
	uint32_t devid;
	uint32_t gref[8];
	uint32_t order;
	uint32_t proto;
	char pool[LENGTH];
	uint32_t port;
#ifndef RFC
	uint32_t poll_duration;
	uint32_t poll_idle_threshold;
#endif
};

#ifndef RFC
struct resume {
	uint32_t flags;
	char new_params[LENGTH];
	char secondary[LENGTH];
};
#endif

struct message {
	uint16_t type;
	uint16_t cookie;
	union {
		pid_t tapdisk_pid;
		struct image image;
		struct params params;
		struct string string;
		struct minors minors;
		struct response response;
		struct list list;
		struct stat_ info;
		struct blkif blkif;
#ifndef RFC
		struct resume resume;
#endif
	} u;
};

/* The seed's structures before the RFC, only for their size. */
struct blktap2_params {
	uint8_t flags;
	uint8_t storage;
	uint32_t devnum;
	uint32_t domid;
	uint16_t path_len;
	char path[LENGTH];
};

struct blktap2_message {
	uint16_t type;
	uint16_t cookie;
	union {
		pid_t tapdisk_pid;
		struct image image;
		struct blktap2_params params;
		struct string string;
		struct minors minors;
		struct response response;
		struct list list;
	} u;
};

enum id {
	ERROR = 1,
	RUNTIME_ERROR,
	PID,
	PID_RSP,
	ATTACH,
	ATTACH_RSP,
	OPEN,
	OPEN_RSP,
	PAUSE,
	PAUSE_RSP,
	RESUME,
	RESUME_RSP,
	CLOSE,
	CLOSE_RSP,
	DETACH,
	DETACH_RSP,
	LIST_MINORS,
	LIST_MINORS_RSP,
	LIST,
	LIST_RSP,
	STATS,
	STATS_RSP,
	FORCE_SHUTDOWN,
#ifdef RFC
	DISK_INFO,
	DISK_INFO_RSP,
	XENBLKIF_CONNECT,
	XENBLKIF_CONNECT_RSP,
	XENBLKIF_DISCONNECT,
	XENBLKIF_DISCONNECT_RSP,
	EXIT,
#else
	XENBLKIF_CONNECT,
	XENBLKIF_CONNECT_RSP,
	XENBLKIF_DISCONNECT,
	XENBLKIF_DISCONNECT_RSP,
	DISK_INFO,
	DISK_INFO_RSP,
	EXIT,
	COMMIT,
	COMMIT_RSP,
	QUERY_COMMIT_JOB,
	QUERY_COMMIT_JOB_RSP,
	CANCEL_COMMIT_JOB,
	CANCEL_COMMIT_JOB_RSP,
#endif
};

#define FIELD(name) \
	printf("field %s %zu %zu\n", #name, offsetof(struct message, name), sizeof(((struct message *)0)->name))
#define SIZE(name) printf("size %s %zu\n", #name, sizeof(struct name))

static struct message m;

static void begin(uint16_t type)
{
	memset(&m, 0, sizeof(m));
	m.type = type;
	/* Every message another cookie, both bytes of it used. */
	m.cookie = 0x2100 + type;
}

static void print(const char *name)
{
	const unsigned char *bytes = (const unsigned char *)&m;
	printf("message %s ", name);
	for (size_t i = 0; i < sizeof(m); i++)
		printf("%02x", bytes[i]);
	putchar('\n');
}

static void plain(uint16_t type, const char *name)
{
	begin(type);
	print(name);
}

static void response(uint16_t type, const char *name, int error, const char *text)
{
	begin(type);
	m.u.response.error = error;
	strcpy(m.u.response.message, text);
	print(name);
}

static void image(uint16_t type, const char *name)
{
	begin(type);
	m.u.image.sectors = 0x0102030405060708ull;
	m.u.image.sector_size = 0x11121314;
	m.u.image.info = 0x21222324;
	print(name);
}

static void params(uint16_t type, const char *name)
{
	begin(type);
	m.u.params.flags = 0x818283c4;
	m.u.params.devnum = 0x31323334;
	m.u.params.domid = 0x41424344;
	/* 255 letters: the longest. */
	memset(m.u.params.path, 'p', LENGTH - 1);
	m.u.params.prt_devnum = 0x51525354;
#ifndef RFC
	m.u.params.req_timeout = 0x6162;
#endif
	memset(m.u.params.secondary, 's', LENGTH - 1);
	print(name);
}

static void blkif(const char *name, unsigned order, unsigned proto)
{
	begin(XENBLKIF_CONNECT);
	m.u.blkif.domid = 0x7172;
	m.u.blkif.devid = 0x81828384;
	for (unsigned i = 0; i < 1u << order; i++)
		m.u.blkif.gref[i] = 0x91929300 + i;
	m.u.blkif.order = order;
	m.u.blkif.proto = proto;
	strcpy(m.u.blkif.pool, "td-xenio-default");
	m.u.blkif.port = 0xa1a2a3a4;
#ifndef RFC
	m.u.blkif.poll_duration = 0xb1b2b3b4;
	m.u.blkif.poll_idle_threshold = 0xc1c2c3c4;
#endif
	print(name);
}

int main(void)
{
	SIZE(message);
	SIZE(params);
	SIZE(image);
	SIZE(string);
	SIZE(response);
	SIZE(minors);
	SIZE(list);
	SIZE(stat_);
	SIZE(blkif);
	SIZE(blktap2_message);

	FIELD(type);
	FIELD(cookie);
	FIELD(u);
	FIELD(u.tapdisk_pid);
	FIELD(u.params.flags);
	FIELD(u.params.devnum);
	FIELD(u.params.domid);
	FIELD(u.params.path);
	FIELD(u.params.prt_devnum);
	FIELD(u.params.secondary);
	FIELD(u.image.sectors);
	FIELD(u.image.sector_size);
	FIELD(u.image.info);
	FIELD(u.string.text);
	FIELD(u.response.error);
	FIELD(u.response.message);
	FIELD(u.minors.count);
	FIELD(u.minors.list);
	FIELD(u.list.count);
	FIELD(u.list.minor);
	FIELD(u.list.state);
	FIELD(u.list.path);
	FIELD(u.info.type);
	FIELD(u.info.cookie);
	FIELD(u.info.length);
	FIELD(u.blkif.domid);
	FIELD(u.blkif.devid);
	FIELD(u.blkif.gref);
	FIELD(u.blkif.order);
	FIELD(u.blkif.proto);
	FIELD(u.blkif.pool);
	FIELD(u.blkif.port);
#ifndef RFC
	SIZE(resume);
	FIELD(u.params.req_timeout);
	FIELD(u.blkif.poll_duration);
	FIELD(u.blkif.poll_idle_threshold);
#endif

	response(ERROR, "error", 22, "no such message");
	response(RUNTIME_ERROR, "runtime-error", 5, "the store failed");
	plain(PID, "pid");
	begin(PID_RSP);
	m.u.tapdisk_pid = 0x01020304;
	print("pid-rsp");
	plain(ATTACH, "attach");
	response(ATTACH_RSP, "attach-rsp", 17, "minor 3 is attached");
	params(OPEN, "open");
	image(OPEN_RSP, "open-rsp");
	plain(PAUSE, "pause");
	response(PAUSE_RSP, "pause-rsp", 0, "");
	params(RESUME, "resume");
	response(RESUME_RSP, "resume-rsp", 124, "sizes differ");
	plain(CLOSE, "close");
	response(CLOSE_RSP, "close-rsp", -0x01020304, "a negative number");
	plain(DETACH, "detach");
	response(DETACH_RSP, "detach-rsp", 16, "open");
	plain(LIST_MINORS, "list-minors");
	begin(LIST_MINORS_RSP);
	m.u.minors.count = MAX_MINORS;
	for (int i = 0; i < (int)MAX_MINORS; i++)
		m.u.minors.list[i] = 0x0d0e0f00 + i;
	print("list-minors-rsp");
	plain(LIST, "list");
	begin(LIST_RSP);
	m.u.list.count = 0x11223344;
	m.u.list.minor = 0x21222324;
	m.u.list.state = 0x22a;
	strcpy(m.u.list.path, "vhd:/dev/vg/lv");
	print("list-rsp");
	begin(LIST_RSP);
	m.u.list.minor = -1;
	print("list-end");
	plain(STATS, "stats");
	begin(STATS_RSP);
	m.u.info.length = 0x0807060504030201ull;
	print("stats-rsp");
	plain(FORCE_SHUTDOWN, "force-shutdown");
	plain(DISK_INFO, "disk-info");
	image(DISK_INFO_RSP, "disk-info-rsp");
	blkif("blkif-connect-0", 0, 1);
	blkif("blkif-connect-1", 1, 2);
	blkif("blkif-connect-2", 2, 3);
	blkif("blkif-connect-3", 3, 3);
	response(XENBLKIF_CONNECT_RSP, "blkif-connect-rsp", 114, "connected already");
	begin(XENBLKIF_DISCONNECT);
	m.u.blkif.domid = 0x7172;
	m.u.blkif.devid = 0x81828384;
	print("blkif-disconnect");
	response(XENBLKIF_DISCONNECT_RSP, "blkif-disconnect-rsp", 19, "no such ring");
	plain(EXIT, "exit");
#ifndef RFC
	plain(COMMIT, "commit");
	plain(COMMIT_RSP, "commit-rsp");
	plain(QUERY_COMMIT_JOB, "query-commit-job");
	plain(QUERY_COMMIT_JOB_RSP, "query-commit-job-rsp");
	plain(CANCEL_COMMIT_JOB, "cancel-commit-job");
	plain(CANCEL_COMMIT_JOB_RSP, "cancel-commit-job-rsp");
#endif
	return 0;
}
