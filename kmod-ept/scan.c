// SPDX-License-Identifier: GPL-2.0
/*
 * A scan goes block by block: read, give to the caller, then clear what was given. So a failure to
 * write to the caller's memory loses nothing, and a page that is accessed in between is reported
 * now. A block is 1 GiB, aligned: a mapping of any size is read whole before it is cleared.
 *
 * mmu_lock is held for writing: no entry is installed, dropped or freed then, by anyone. It is let
 * go every 16 MiB, for vCPUs wait for it when they fault.
 */
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"
#include "table_walk.h"

#define BLOCK_PAGES BIT_ULL(18)
#define HOLD_PAGES BIT_ULL(12)
#define BLOCK_WORDS (BLOCK_PAGES / 64)
/* KVM clears a mapping's bit for each of its pages that it is asked for. */
#define AGING_PAGES_MAX BIT_ULL(9)

struct scan {
	struct kvm *kvm;
	struct godwit_ept_scan *request;
	struct table_walk walk;
	u64 accessed[BLOCK_WORDS];
	u64 dirty[BLOCK_WORDS];
	u64 present[BLOCK_WORDS];
};

static unsigned long *table_at(u64 physical)
{
	return __va(physical);
}

/* An empty range is a look at the roots alone. */
static void walk_held(struct scan *scan, u64 page, u64 end)
{
	struct vm_roots roots;
	unsigned int i;
	u64 held;

	write_lock(&scan->kvm->mmu_lock);
	held = local_clock();
	vm_roots(scan->kvm, &roots);
	for (i = 0; i < roots.count; i++)
		table_walk_range(&scan->walk, roots.physical[i], roots.levels, page, end);
	held = local_clock() - held;
	write_unlock(&scan->kvm->mmu_lock);
	scan->request->state |= roots.state;
	scan->request->hold_max_ns = max_t(u64, scan->request->hold_max_ns, held);
	cond_resched();
}

static void walk_tables(struct scan *scan, u64 page, u64 end)
{
	u64 next;

	for (; page < end; page = next) {
		next = min(end, round_down(page, HOLD_PAGES) + HOLD_PAGES);
		walk_held(scan, page, next);
	}
}

static unsigned long address_of(struct kvm *kvm, u64 page, u64 *slot_end)
{
	struct kvm_memory_slot *slot = __gfn_to_memslot(kvm_memslots(kvm), page);

	if (!slot || (slot->flags & KVM_MEMSLOT_INVALID))
		return 0;
	*slot_end = slot->base_gfn + slot->npages;
	return slot->userspace_addr + (page - slot->base_gfn) * PAGE_SIZE;
}

/*
 * KVM's own aging, by the pointers that it gives to the kernel's memory management: right whatever
 * its tables are. It takes mmu_lock itself.
 */
static void ask_aging(struct scan *scan, u64 page, u64 end)
{
	struct mmu_notifier *notifier = &scan->kvm->mmu_notifier;
	unsigned long address;
	u64 slot_end;
	int idx;

	scan->request->state |= GODWIT_EPT_KVM_AGING;
	for (; page < end; page++) {
		u64 at = page - scan->walk.base;

		if (table_has_bit(scan->accessed, at))
			continue;
		idx = srcu_read_lock(&scan->kvm->srcu);
		address = address_of(scan->kvm, page, &slot_end);
		if (address && notifier->ops->test_young(notifier, scan->kvm->mm, address))
			table_set_bits(scan->accessed, at, 1);
		srcu_read_unlock(&scan->kvm->srcu, idx);
		cond_resched();
	}
	/* It knows nothing of these. */
	table_set_bits(scan->dirty, 0, end - scan->walk.base);
	table_set_bits(scan->present, 0, end - scan->walk.base);
}

/* What was reported, run by run. */
static void clear_by_aging(struct scan *scan, u64 page, u64 end)
{
	struct mmu_notifier *notifier = &scan->kvm->mmu_notifier;
	unsigned long address;
	u64 next, slot_end = 0;
	int idx;

	for (; page < end; page = next) {
		next = page + 1;
		if (!table_has_bit(scan->accessed, page - scan->walk.base))
			continue;
		idx = srcu_read_lock(&scan->kvm->srcu);
		address = address_of(scan->kvm, page, &slot_end);
		while (next < min3(end, slot_end, page + AGING_PAGES_MAX) &&
		       table_has_bit(scan->accessed, next - scan->walk.base))
			next++;
		if (address)
			notifier->ops->clear_young(notifier, scan->kvm->mm, address,
						   address + (next - page) * PAGE_SIZE);
		srcu_read_unlock(&scan->kvm->srcu, idx);
		cond_resched();
	}
}

static u64 weight(const u64 *map)
{
	u64 bits = 0;
	unsigned int i;

	for (i = 0; i < BLOCK_WORDS; i++)
		bits += hweight64(map[i]);
	return bits;
}

static bool give(u64 user, u64 word, const u64 *map, u64 words)
{
	return !user || !copy_to_user(u64_to_user_ptr(user) + word * 8, map, words * 8);
}

static int give_bitmaps(struct scan *scan, u64 page, u64 end)
{
	struct godwit_ept_scan *request = scan->request;
	u64 word = (page - request->start) / 64;
	u64 words = DIV_ROUND_UP(end - page, 64);

	if (!give(request->accessed, word, scan->accessed, words) ||
	    !give(request->dirty, word, scan->dirty, words) ||
	    !give(request->present, word, scan->present, words))
		return -EFAULT;
	return 0;
}

static int scan_block(struct scan *scan, u64 page, u64 end, bool tables)
{
	struct godwit_ept_scan *request = scan->request;
	bool aging;
	int error;

	memset(scan->accessed, 0, sizeof(scan->accessed));
	memset(scan->dirty, 0, sizeof(scan->dirty));
	memset(scan->present, 0, sizeof(scan->present));
	scan->walk.base = page;
	scan->walk.clear = false;
	if (!vm_has_pages(scan->kvm, page, end))
		return -ERANGE;
	if (tables)
		walk_tables(scan, page, end);
	else
		walk_held(scan, page, page);
	if (scan->walk.tracking_off)
		request->state |= GODWIT_EPT_AD_OFF;
	if ((request->state & GODWIT_EPT_AD_OFF) && !(request->flags & GODWIT_EPT_USE_KVM_AGING))
		return -EOPNOTSUPP;
	aging = !tables || (request->state & GODWIT_EPT_SHADOW);
	if (aging)
		ask_aging(scan, page, end);
	error = give_bitmaps(scan, page, end);
	if (error)
		return error;
	request->accessed_count += weight(scan->accessed);
	request->dirty_count += weight(scan->dirty);
	request->present_count += weight(scan->present);
	if (request->flags & GODWIT_EPT_CLEAR) {
		scan->walk.clear = true;
		if (tables)
			walk_tables(scan, page, end);
		if (aging)
			clear_by_aging(scan, page, end);
	}
	return 0;
}

int vm_scan(struct kvm *kvm, struct godwit_ept_scan *request, bool tables)
{
	struct scan *scan = kvzalloc(sizeof(*scan), GFP_KERNEL_ACCOUNT);
	u64 end = request->start + request->count;
	u64 page, next;
	int error = 0;

	if (!scan)
		return -ENOMEM;
	scan->kvm = kvm;
	scan->request = request;
	scan->walk = (struct table_walk){
		.format = table_format_of(vm_uses_ept()),
		.address_mask = TABLE_ENTRY_ADDRESS & __PHYSICAL_MASK,
		.table = table_at,
		.start = request->start,
		.end = end,
		.accessed = scan->accessed,
		.dirty = scan->dirty,
		.present = scan->present,
	};
	for (page = request->start; page < end; page = next) {
		next = min(end, round_down(page, BLOCK_PAGES) + BLOCK_PAGES);
		error = scan_block(scan, page, next, tables);
		if (error)
			break;
		request->next = next;
		if (signal_pending(current))
			break;
	}
	if (request->next > request->start) {
		error = 0;
		if (request->flags & GODWIT_EPT_CLEAR)
			vm_flush(kvm);
	}
	memcpy(request->leaves, scan->walk.leaves, sizeof(request->leaves));
	if (scan->walk.partial)
		request->state |= GODWIT_EPT_PARTIAL;
	kvfree(scan);
	return error;
}
