/* Counts what each processor of an emulated machine executes, for `make bench`: a plugin for QEMU's TCG.
 *
 * A translated block counts how often each processor entered it; everything else is arithmetic at the end of a phase. A
 * phase begins and ends where a program executes a no-op that no compiler makes (load.c): its first one ends the boot, and
 * from there on they alternate. At each end all blocks that ran are written out, and forgotten.
 *
 * Another no-op, within a phase, only asks how many instructions each processor has executed so far: one line of "lap" and
 * the sums.
 *
 * One line per block and processor: the phase, the processor, the address, times entered, instructions, and what kind of
 * block it is. Compiled for each benchmark against the plugin interface that QEMU documents (docs/devel/tcg-plugins.rst);
 * Debian's packages have no header for it, so what is used of version 1 is declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum registers { REGISTERS_UNTOUCHED = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*entered)(unsigned int vcpu, void *data),
					  enum registers registers, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    void (*executed)(unsigned int vcpu, void *data), enum registers registers,
					    void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

EXPORT int qemu_plugin_version = 1;

#define PROCESSORS 12

/* At most one instruction of a block is of interest: it ends the block, or leaves it for Xen. */
enum kind { PLAIN, STRING, VMMCALL, VMRUN, SYSCALL, HALT };
static const char *const kinds[] = { "plain", "string", "vmmcall", "vmrun", "syscall", "halt" };

struct block {
	struct block *next;
	uint64_t address;
	uint32_t instructions;
	enum kind kind;
	uint64_t entered[PROCESSORS];
};

static struct block *blocks;
static FILE *out;
static unsigned marks;
static uint64_t executed[PROCESSORS];

static void entered(unsigned int vcpu, void *data)
{
	struct block *block = data;

	if (vcpu >= PROCESSORS) {
		fprintf(stderr, "count.c counts %d processors, and this is number %u\n", PROCESSORS, vcpu);
		abort();
	}
	block->entered[vcpu]++;
	executed[vcpu] += block->instructions;
}

/* An odd mark begins a phase, an even one ends it. */
static void marked(unsigned int vcpu, void *data)
{
	bool ends = ++marks % 2 == 0;

	(void)vcpu;
	(void)data;
	for (struct block *block = blocks; block; block = block->next) {
		for (unsigned cpu = 0; ends && cpu < PROCESSORS; cpu++) {
			if (block->entered[cpu])
				fprintf(out, "%u %u %" PRIx64 " %" PRIu64 " %" PRIu64 " %s\n", marks / 2 - 1, cpu,
					block->address, block->entered[cpu],
					block->entered[cpu] * block->instructions, kinds[block->kind]);
		}
		memset(block->entered, 0, sizeof(block->entered));
	}
	if (ends) {
		fprintf(out, "end %u\n", marks / 2 - 1);
		fflush(out);
	}
}

static void lapped(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	if (marks % 2 == 0)
		return;
	fprintf(out, "lap");
	for (unsigned cpu = 0; cpu < PROCESSORS; cpu++)
		fprintf(out, " %" PRIu64, executed[cpu]);
	fprintf(out, "\n");
}

/* nopl 0x7a7d0b0e(%rax,%rax,1), and the same with the next number */
static const uint8_t mark[] = { 0x0f, 0x1f, 0x84, 0x00, 0x0e, 0x0b, 0x7d, 0x7a };
static const uint8_t lap[] = { 0x0f, 0x1f, 0x84, 0x00, 0x0f, 0x0b, 0x7d, 0x7a };

static bool is(const uint8_t *bytes, size_t size, const char *wanted, size_t length)
{
	return size >= length && memcmp(bytes, wanted, length) == 0;
}

static enum kind kind_of(const uint8_t *bytes, size_t size, bool alone)
{
	if (is(bytes, size, "\x0f\x01\xd9", 3))
		return VMMCALL;
	if (is(bytes, size, "\x0f\x01\xd8", 3))
		return VMRUN;
	if (is(bytes, size, "\x0f\x05", 2))
		return SYSCALL;
	if (is(bytes, size, "\xf4", 1))
		return HALT;
	/* TCG goes back to a repeated instruction itself for its second and every further round. */
	if (alone && size >= 2 && (bytes[0] == 0xf2 || bytes[0] == 0xf3)) {
		uint8_t operation = bytes[size - 1];

		if ((operation >= 0xa4 && operation <= 0xa7) || (operation >= 0xaa && operation <= 0xaf))
			return STRING;
	}
	return PLAIN;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	size_t instructions = qemu_plugin_tb_n_insns(tb);
	struct block *block = calloc(1, sizeof(*block));

	(void)id;
	if (!block)
		abort();
	block->address = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
	block->instructions = instructions;
	block->next = blocks;
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, entered, REGISTERS_UNTOUCHED, block);
	for (size_t i = 0; i < instructions; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		enum kind kind = kind_of(qemu_plugin_insn_data(insn), qemu_plugin_insn_size(insn), instructions == 1);

		/* What follows a hypercall is another block's: that of the way back from Xen. */
		if (kind != PLAIN && block->kind == PLAIN) {
			block->kind = kind;
			block->instructions = i + 1;
		}
		if (qemu_plugin_insn_size(insn) != sizeof(mark))
			continue;
		if (memcmp(qemu_plugin_insn_data(insn), mark, sizeof(mark)) == 0)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, REGISTERS_UNTOUCHED, NULL);
		if (memcmp(qemu_plugin_insn_data(insn), lap, sizeof(lap)) == 0)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, lapped, REGISTERS_UNTOUCHED, NULL);
	}
}

/* The one argument is out=FILE. */
EXPORT int qemu_plugin_install(uint64_t id, const void *machine, int argc, char **argv)
{
	(void)machine;
	if (argc != 1 || strncmp(argv[0], "out=", 4) != 0)
		return -1;
	out = fopen(argv[0] + 4, "w");
	if (!out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
