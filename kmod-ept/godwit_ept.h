/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#pragma once
/*
 * ABI of /dev/godwit-ept: which pages a KVM VM has accessed, as its second-level page tables
 * (Intel EPT, AMD NPT) have it.
 *
 * Open (CAP_SYS_ADMIN), attach one VM, scan. The device keeps the VM's structures, not its memory,
 * until it is closed. Every structure begins with its own size; a size, a flag or an ABI that the
 * module does not know is refused with EINVAL. Numbers of pages are of 4 KiB, addresses are
 * guest-physical. Fields are host byte order; the machine is x86-64.
 *
 * Errors of every call: EFAULT (a bad pointer), EBUSY (another thread uses this descriptor),
 * ENOTTY (no such call). What else each may say stands beside it.
 */
#include <linux/ioctl.h>
#include <linux/types.h>

#define GODWIT_EPT_DEVICE "/dev/godwit-ept"
#define GODWIT_EPT_ABI 1U

/*
 * EBADF: no such descriptor. EINVAL: not a VM of KVM's. EBUSY: someone else scans this VM, or this
 * descriptor has one. EOPNOTSUPP: a VM whose memory only its own firmware may see (TDX), or a KVM
 * that cannot tell what was accessed.
 */
struct godwit_ept_attach {
	__u32 size;
	__u32 abi; /* GODWIT_EPT_ABI */
	__s32 vm_fd;
	__u32 flags; /* 0 */
};

/* How a VM's accessed bits were or would be read. */
#define GODWIT_EPT_NO_TABLES (1U << 0) /* no vCPU has run since the tables were last dropped */
#define GODWIT_EPT_AD_OFF (1U << 1)    /* this KVM runs without accessed bits in hardware */
#define GODWIT_EPT_SHADOW (1U << 2) /* shadow tables: a nested guest, or KVM without EPT or NPT */
#define GODWIT_EPT_KVM_AGING (1U << 3) /* KVM's own aging was asked, page by page: slow */
#define GODWIT_EPT_UNTESTED (1U << 4)  /* a newer kernel than tested: KVM's own aging only */
#define GODWIT_EPT_PARTIAL (1U << 5)   /* a large mapping reaches out of the range: not cleared */

enum godwit_ept_format { GODWIT_EPT_FORMAT_EPT = 1, GODWIT_EPT_FORMAT_NPT = 2 };

/* ENOTCONN: nothing is attached. ESRCH: the VM's process has ended. */
struct godwit_ept_info {
	__u32 size;
	__u32 abi;
	__u32 format; /* enum godwit_ept_format */
	__u32 state;
	__u32 levels; /* of the tables; 0: there are none */
	__u32 vcpus;
	__u32 memslots;
	__s32 pid;   /* who made the VM */
	__u64 pages; /* in all memslots */
};

struct godwit_ept_slot {
	__u64 start;   /* page number */
	__u64 count;   /* pages */
	__u64 address; /* virtual, in the VM's process */
	__u32 id;
	__u32 flags; /* KVM's */
};

/* ENOTCONN, ESRCH. With more slots than room, count says how many there are. */
struct godwit_ept_slots {
	__u32 size;
	__u32 room;  /* entries at slots, at most GODWIT_EPT_SLOTS_MAX */
	__u32 count; /* out */
	__u32 flags; /* 0 */
	__u64 slots; /* struct godwit_ept_slot * */
};
#define GODWIT_EPT_SLOTS_MAX 32768U

/* Forget what is reported: the next scan tells of accesses since this one. */
#define GODWIT_EPT_CLEAR (1U << 0)
/* Ask KVM's own aging and read no table: no dirty bits, slow, right with accessed bits off too. */
#define GODWIT_EPT_USE_KVM_AGING (1U << 1)

/*
 * An access is never lost: it is in this bitmap or in the next. Nothing is cleared before it has
 * been written to the caller's memory, and vCPUs are made to see the cleared bits before the call
 * returns. A large mapping has one bit: all its pages count as accessed.
 *
 * Dirty means "may have been written since it was mapped": KVM sets the bit when it maps a page for
 * writing. It is never cleared. Where it is not known (KVM's own aging), all pages are dirty and
 * present.
 *
 * The call may end early (a signal, a memslot that went): `next` is where to go on. An error is
 * returned only if nothing was done.
 *
 * ENOTCONN: nothing is attached. ESRCH: the VM's process has ended. ERANGE: not all of the range is
 * in memslots. EOPNOTSUPP: accessed bits are off, and GODWIT_EPT_USE_KVM_AGING was not given.
 * EIO: KVM has declared the VM broken. ENOMEM.
 */
struct godwit_ept_scan {
	__u32 size;
	__u32 flags;
	__u64 start; /* first page, a multiple of 64 */
	__u64 count; /* pages */
	/* Bitmaps of 64-bit words, bit i of word j is page start + 64 j + i; 0: not wanted. */
	__u64 accessed;
	__u64 dirty;
	__u64 present;
	/* Out. */
	__u64 next;
	__u64 accessed_count;
	__u64 dirty_count;
	__u64 present_count;
	__u64 leaves[3];   /* mappings of 4 KiB, 2 MiB, 1 GiB */
	__u64 hold_max_ns; /* longest time that KVM's mmu_lock was held */
	__u32 state;
	__u32 reserved; /* 0 */
};

#define GODWIT_EPT_IOC 0xE7
#define GODWIT_EPT_IOC_ATTACH _IOW(GODWIT_EPT_IOC, 1, struct godwit_ept_attach)
#define GODWIT_EPT_IOC_INFO _IOWR(GODWIT_EPT_IOC, 2, struct godwit_ept_info)
#define GODWIT_EPT_IOC_SLOTS _IOWR(GODWIT_EPT_IOC, 3, struct godwit_ept_slots)
#define GODWIT_EPT_IOC_SCAN _IOWR(GODWIT_EPT_IOC, 4, struct godwit_ept_scan)
