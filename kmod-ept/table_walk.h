/* SPDX-License-Identifier: GPL-2.0 */
#pragma once
/*
 * Walk of a second-level page table, EPT or NPT as KVM writes them, into bitmaps. Pure: the module
 * gives it KVM's tables, the unit tests give it tables of their own.
 *
 * The caller sees to it that no table is freed and no entry is installed meanwhile (KVM: mmu_lock
 * held for writing); hardware may set bits. Only accessed bits are ever changed, only of leaves
 * whose bit is a hardware one.
 *
 * Sources: Intel SDM vol. 3C 29.3.2 (EPT: accessed 8, dirty 9), AMD APM vol. 2 15.25 and 5.4 (NPT:
 * accessed 5, dirty 6); arch/x86/kvm/mmu/spte.h for what KVM adds: bit 11 is "present" whatever
 * the hardware's bits say, 53:52 tell on EPT how accesses are tracked (1: not by hardware).
 */
#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/bitops.h>
#else
#include <stdbool.h>

static inline void clear_bit(long bit, unsigned long *word)
{
	__atomic_fetch_and(word, ~(1UL << bit), __ATOMIC_SEQ_CST);
}
#endif

#define TABLE_LEVEL_BITS 9
#define TABLE_ENTRY_LARGE (1ULL << 7)
#define TABLE_ENTRY_PRESENT (1ULL << 11)
#define TABLE_ENTRY_ADDRESS (((1ULL << 52) - 1) & ~4095ULL)
#define TABLE_ENTRY_TRACKING_SHIFT 52
#define TABLE_ENTRY_TRACKING_OFF 1U
#define TABLE_LARGE_LEVEL_MAX 3U /* 1 GiB */

struct table_format {
	unsigned int accessed_bit;
	unsigned int dirty_bit;
	bool tracking_field; /* bits 53:52 have a meaning */
};

static inline struct table_format table_format_of(bool is_ept)
{
	struct table_format ept = {8, 9, true};
	struct table_format npt = {5, 6, false};

	return is_ept ? ept : npt;
}

struct table_walk {
	struct table_format format;
	__u64 address_mask; /* of an entry: where the next table is */
	unsigned long *(*table)(__u64 physical);
	__u64 start, end; /* the range asked for, in pages */
	__u64 base;	  /* page of bit 0 of the bitmaps */
	__u64 *accessed, *dirty, *present;
	bool clear; /* accessed bits of what is in `accessed`, instead of reading */
	/* Out. */
	__u64 leaves[TABLE_LARGE_LEVEL_MAX];
	bool tracking_off; /* met a leaf whose accessed bit means nothing: not in `accessed` */
	bool partial;	   /* a leaf reaches out of the range: not cleared */
};

static inline void table_set_bits(__u64 *map, __u64 from, __u64 count)
{
	for (; count && (from & 63); from++, count--)
		map[from / 64] |= 1ULL << (from & 63);
	for (; count >= 64; from += 64, count -= 64)
		map[from / 64] = ~0ULL;
	for (; count; from++, count--)
		map[from / 64] |= 1ULL << (from & 63);
}

static inline bool table_has_bit(const __u64 *map, __u64 at)
{
	return map[at / 64] >> (at & 63) & 1;
}

/* The bit of a leaf that maps pages outside of the range as well is theirs too. */
static inline void table_clear_leaf(struct table_walk *walk, unsigned long *entry, __u64 first,
				    __u64 pages)
{
	if (first < walk->start || first + pages > walk->end)
		walk->partial = true;
	else
		clear_bit(walk->format.accessed_bit, entry);
}

/* Pages from `page` to `next` are mapped by the leaf `entry`, which may map more. */
static inline void table_visit_leaf(struct table_walk *walk, unsigned long *entry,
				    unsigned long value, unsigned int level, __u64 page, __u64 next)
{
	__u64 pages = 1ULL << (TABLE_LEVEL_BITS * (level - 1));
	__u64 first = page & ~(pages - 1);
	__u64 at = page - walk->base;
	bool by_hardware = !walk->format.tracking_field ||
			   (value >> TABLE_ENTRY_TRACKING_SHIFT & 3) != TABLE_ENTRY_TRACKING_OFF;
	bool accessed = by_hardware && (value >> walk->format.accessed_bit & 1);

	if (walk->clear) {
		if (accessed && table_has_bit(walk->accessed, at))
			table_clear_leaf(walk, entry, first, pages);
		return;
	}
	if (page == first || page == walk->start)
		walk->leaves[level - 1]++;
	table_set_bits(walk->present, at, next - page);
	if (!by_hardware)
		walk->tracking_off = true;
	if (accessed)
		table_set_bits(walk->accessed, at, next - page);
	if (!by_hardware || (value >> walk->format.dirty_bit & 1))
		table_set_bits(walk->dirty, at, next - page);
}

/*
 * Reads or clears pages from `page` to `end` under one root of `levels` levels (4 or 5). What is
 * not mapped is skipped by the whole entry.
 */
static inline void table_walk_range(struct table_walk *walk, __u64 root, unsigned int levels,
				    __u64 page, __u64 end)
{
	while (page < end) {
		unsigned long *table = walk->table(root);
		unsigned int level = levels;

		for (;;) {
			unsigned int shift = TABLE_LEVEL_BITS * (level - 1);
			unsigned long *entry = &table[page >> shift & 511];
			unsigned long value = __atomic_load_n(entry, __ATOMIC_RELAXED);
			__u64 next = ((page >> shift) + 1) << shift;
			bool leaf = level == 1 ||
				    (level <= TABLE_LARGE_LEVEL_MAX && (value & TABLE_ENTRY_LARGE));

			if (next > end)
				next = end;
			if ((value & TABLE_ENTRY_PRESENT) && !leaf) {
				table = walk->table(value & walk->address_mask);
				level--;
				continue;
			}
			if (value & TABLE_ENTRY_PRESENT)
				table_visit_leaf(walk, entry, value, level, page, next);
			page = next;
			/* The neighbours of a 4 KiB entry are in the same table. */
			if (level > 1 || page == end || !(page & 511))
				break;
		}
	}
}
