/* SPDX-License-Identifier: GPL-2.0 */
#pragma once
/*
 * vm.c knows KVM's structures, scan.c what a scan is, main.c the device.
 */
#include <linux/kvm_host.h>
#include <linux/types.h>

#include "godwit_ept.h"

struct file;

/* Roots of one VM: KVM has one a role (normal, SMM, ...), shared by the vCPUs. */
#define VM_ROOTS_MAX 8
struct vm_roots {
	u64 physical[VM_ROOTS_MAX];
	unsigned int count;
	unsigned int levels;
	u32 state; /* GODWIT_EPT_NO_TABLES, _AD_OFF, _SHADOW */
};

/* The VM behind a descriptor, with a reference to be given back; or ERR_PTR. */
struct kvm *vm_get(int fd);
bool vm_uses_ept(void);
/* For a look at roots, mmu_lock must be held for writing; they are valid until it is let go. */
void vm_roots(struct kvm *kvm, struct vm_roots *roots);
bool vm_has_pages(struct kvm *kvm, u64 start, u64 end);
/* All vCPUs have left the guest since, or enter it with an empty TLB. */
void vm_flush(struct kvm *kvm);

/*
 * One scan at a time of a VM whose memory is held (mmget). Fills the output fields of `request`.
 * `tables`: its tables may be read.
 */
int vm_scan(struct kvm *kvm, struct godwit_ept_scan *request, bool tables);
