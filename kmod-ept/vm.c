// SPDX-License-Identifier: GPL-2.0
/*
 * What we know of KVM's inside. Everything here is in the headers that KVM ships; Kbuild looks up
 * which of its functions a module may call.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/slab.h>
#include <linux/smp.h>

#include "internal.h"

#define LEVELS_MIN 4 /* of a table that is indexed by the VM's addresses */

#ifndef HAVE_FILE_IS_KVM
/*
 * KVM's own answer is for its own modules (kernels from 6.18 on). Nobody else makes an anonymous
 * inode of this name whose ioctl is this function of this module.
 */
static bool file_is_vm(struct file *file)
{
	char name[KSYM_SYMBOL_LEN];

	if (file_inode(file)->i_sb->s_magic != ANON_INODE_FS_MAGIC ||
	    strcmp(file->f_path.dentry->d_name.name, "kvm-vm") || !file->f_op->unlocked_ioctl)
		return false;
	snprintf(name, sizeof(name), "%ps", (void *)file->f_op->unlocked_ioctl);
	return !strcmp(name, "kvm_vm_ioctl [kvm]") || !strcmp(name, "kvm_vm_ioctl");
}
#else
#define file_is_vm file_is_kvm
#endif

struct kvm *vm_get(int fd)
{
	struct file *file = fget(fd);
	struct kvm *kvm = ERR_PTR(-EINVAL);

	if (!file)
		return ERR_PTR(-EBADF);
	if (file_is_vm(file)) {
		kvm = file->private_data;
		kvm_get_kvm(kvm);
	}
	fput(file);
	return kvm;
}

/* A processor has one of the two. */
bool vm_uses_ept(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

static void add_root(struct vm_roots *roots, u64 physical)
{
	unsigned int i;

	if (!VALID_PAGE(physical))
		return;
	for (i = 0; i < roots->count; i++)
		if (roots->physical[i] == physical)
			return;
	if (roots->count == VM_ROOTS_MAX)
		roots->state |= GODWIT_EPT_SHADOW; /* KVM knows the rest */
	else
		roots->physical[roots->count++] = physical;
}

/*
 * A root that a vCPU has, now or kept for later, is freed under mmu_lock only. root_mmu is what
 * runs the VM itself, whatever the vCPU does now; tables for a nested guest are indexed by its own
 * addresses, and counted in indirect_shadow_pages.
 */
void vm_roots(struct kvm *kvm, struct vm_roots *roots)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int j;

	*roots = (struct vm_roots){};
	if (READ_ONCE(kvm->arch.indirect_shadow_pages))
		roots->state |= GODWIT_EPT_SHADOW;
	kvm_for_each_vcpu(i, vcpu, kvm) {
		struct kvm_mmu *mmu = &vcpu->arch.root_mmu;

		if (!VALID_PAGE(READ_ONCE(mmu->root.hpa)))
			continue;
		if (mmu->root_role.ad_disabled)
			roots->state |= GODWIT_EPT_AD_OFF;
		if (!mmu->root_role.direct || mmu->root_role.level < LEVELS_MIN ||
		    (roots->levels && roots->levels != mmu->root_role.level)) {
			roots->state |= GODWIT_EPT_SHADOW;
			continue;
		}
		roots->levels = mmu->root_role.level;
		add_root(roots, READ_ONCE(mmu->root.hpa));
		for (j = 0; j < KVM_MMU_NUM_PREV_ROOTS; j++)
			add_root(roots, READ_ONCE(mmu->prev_roots[j].hpa));
	}
	if (!roots->count && !(roots->state & GODWIT_EPT_SHADOW))
		roots->state |= GODWIT_EPT_NO_TABLES;
}

bool vm_has_pages(struct kvm *kvm, u64 start, u64 end)
{
	int idx = srcu_read_lock(&kvm->srcu);

	while (start < end) {
		struct kvm_memory_slot *slot = __gfn_to_memslot(kvm_memslots(kvm), start);

		if (!slot || (slot->flags & KVM_MEMSLOT_INVALID))
			break;
		start = slot->base_gfn + slot->npages;
	}
	srcu_read_unlock(&kvm->srcu, idx);
	return start >= end;
}

#ifdef HAVE_KVM_FLUSH_REMOTE_TLBS
void vm_flush(struct kvm *kvm)
{
	kvm_flush_remote_tlbs(kvm);
}
#else
static void leave_guest(void *unused)
{
}

/*
 * What kvm_make_all_cpus_request() does, by inline functions alone: a vCPU obeys the request before
 * it enters the guest, and the interrupt makes those leave that are in it.
 */
void vm_flush(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int cpu;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
		smp_mb__after_atomic(); /* the request before a look at mode */
		cpu = READ_ONCE(vcpu->cpu);
		if (READ_ONCE(vcpu->mode) != OUTSIDE_GUEST_MODE && cpu >= 0)
			smp_call_function_single(cpu, leave_guest, NULL, 1);
	}
}
#endif
