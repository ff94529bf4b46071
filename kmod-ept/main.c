// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/godwit-ept: one VM an open file, one open file a VM, one call at a time. Everything that
 * comes from user space is checked here.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

/* Of KVM_X86_*_VM: later kinds may keep their tables where we cannot read them. */
#define NEWEST_VM_TYPE 4
#define PAGES_MAX BIT_ULL(40) /* 52 bits of address */

static int read_tables = -1;
module_param(read_tables, int, 0400);
MODULE_PARM_DESC(read_tables,
		 "1: read tables, 0: ask KVM's aging only, -1: by whether the kernel is tested");

struct session {
	struct mutex lock; /* of one call */
	struct kvm *kvm;   /* set once */
	struct list_head link;
};

static DEFINE_MUTEX(sessions_lock);
static LIST_HEAD(sessions);

static bool may_read_tables(void)
{
	return read_tables < 0 ? KERNEL_IS_TESTED : read_tables;
}

static bool is_readable(struct kvm *kvm)
{
	const struct mmu_notifier_ops *ops = kvm->mmu_notifier.ops;

#ifdef HAVE_VM_TYPE
	if (kvm->arch.vm_type > NEWEST_VM_TYPE)
		return false;
#endif
	return ops && ops->test_young && ops->clear_young;
}

static bool is_attached(struct kvm *kvm)
{
	struct session *each;

	list_for_each_entry(each, &sessions, link)
		if (each->kvm == kvm)
			return true;
	return false;
}

static long attach(struct session *session, void __user *argument)
{
	struct godwit_ept_attach request;
	struct kvm *kvm;
	long error = 0;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.size != sizeof(request) || request.abi != GODWIT_EPT_ABI || request.flags)
		return -EINVAL;
	if (session->kvm)
		return -EBUSY;
	kvm = vm_get(request.vm_fd);
	if (IS_ERR(kvm))
		return PTR_ERR(kvm);
	mutex_lock(&sessions_lock);
	if (is_attached(kvm)) {
		error = -EBUSY;
	} else if (!is_readable(kvm)) {
		error = -EOPNOTSUPP;
	} else {
		session->kvm = kvm;
		list_add(&session->link, &sessions);
	}
	mutex_unlock(&sessions_lock);
	if (error)
		kvm_put_kvm(kvm);
	return error;
}

static u32 kernel_state(void)
{
	return read_tables < 0 && !may_read_tables() ? GODWIT_EPT_UNTESTED : 0;
}

static long info(struct kvm *kvm, void __user *argument)
{
	struct godwit_ept_info request;
	struct kvm_memory_slot *slot;
	struct vm_roots roots;
	int idx, bucket;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.size != sizeof(request))
		return -EINVAL;
	request = (struct godwit_ept_info){
		.size = sizeof(request),
		.abi = GODWIT_EPT_ABI,
		.format = vm_uses_ept() ? GODWIT_EPT_FORMAT_EPT : GODWIT_EPT_FORMAT_NPT,
		.vcpus = atomic_read(&kvm->online_vcpus),
		.pid = kvm->userspace_pid,
	};
	idx = srcu_read_lock(&kvm->srcu);
	kvm_for_each_memslot(slot, bucket, kvm_memslots(kvm)) {
		request.memslots++;
		request.pages += slot->npages;
	}
	srcu_read_unlock(&kvm->srcu, idx);
	write_lock(&kvm->mmu_lock);
	vm_roots(kvm, &roots);
	write_unlock(&kvm->mmu_lock);
	request.levels = roots.levels;
	request.state = roots.state | kernel_state();
	return copy_to_user(argument, &request, sizeof(request)) ? -EFAULT : 0;
}

static long slots(struct kvm *kvm, void __user *argument)
{
	struct godwit_ept_slots request;
	struct godwit_ept_slot *found;
	struct kvm_memory_slot *slot;
	int idx, bucket;
	long error = 0;
	u32 copied;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.size != sizeof(request) || request.flags || request.room > GODWIT_EPT_SLOTS_MAX)
		return -EINVAL;
	found = kvcalloc(request.room, sizeof(*found), GFP_KERNEL_ACCOUNT);
	if (!found)
		return -ENOMEM;
	request.count = 0;
	idx = srcu_read_lock(&kvm->srcu);
	kvm_for_each_memslot(slot, bucket, kvm_memslots(kvm)) {
		if (request.count < request.room)
			found[request.count] = (struct godwit_ept_slot){
				.start = slot->base_gfn,
				.count = slot->npages,
				.address = slot->userspace_addr,
				.id = (u16)slot->id,
				.flags = slot->flags,
			};
		request.count++;
	}
	srcu_read_unlock(&kvm->srcu, idx);
	copied = min(request.count, request.room);
	if (copy_to_user(u64_to_user_ptr(request.slots), found, copied * sizeof(*found)) ||
	    copy_to_user(argument, &request, sizeof(request)))
		error = -EFAULT;
	kvfree(found);
	return error;
}

static bool is_scan_valid(const struct godwit_ept_scan *request)
{
	return request->size == sizeof(*request) &&
	       !(request->flags & ~(GODWIT_EPT_CLEAR | GODWIT_EPT_USE_KVM_AGING)) &&
	       !request->reserved && !(request->start & 63) && request->count &&
	       request->start <= PAGES_MAX && request->count <= PAGES_MAX;
}

static long scan(struct kvm *kvm, void __user *argument)
{
	struct godwit_ept_scan request, given;
	bool tables;
	long error;

	if (copy_from_user(&given, argument, sizeof(given)))
		return -EFAULT;
	if (!is_scan_valid(&given))
		return -EINVAL;
	if (READ_ONCE(kvm->vm_bugged))
		return -EIO;
	request = (struct godwit_ept_scan){
		.size = sizeof(request),
		.flags = given.flags,
		.start = given.start,
		.count = given.count,
		.accessed = given.accessed,
		.dirty = given.dirty,
		.present = given.present,
		.next = given.start,
		.state = kernel_state(),
	};
	/* Whoever cannot be told must not have anything cleared. */
	if (copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	tables = may_read_tables() && !(request.flags & GODWIT_EPT_USE_KVM_AGING);
	error = vm_scan(kvm, &request, tables);
	if (copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	return error;
}

/* The VM's memory stays for the call. Once its process has gone, nothing is left to look at. */
static long on_vm(struct kvm *kvm, unsigned int call, void __user *argument)
{
	long result;

	if (!kvm)
		return -ENOTCONN;
	if (!mmget_not_zero(kvm->mm))
		return -ESRCH;
	switch (call) {
	case GODWIT_EPT_IOC_INFO:
		result = info(kvm, argument);
		break;
	case GODWIT_EPT_IOC_SLOTS:
		result = slots(kvm, argument);
		break;
	case GODWIT_EPT_IOC_SCAN:
		result = scan(kvm, argument);
		break;
	default:
		result = -ENOTTY;
	}
	mmput(kvm->mm);
	return result;
}

static long device_ioctl(struct file *file, unsigned int call, unsigned long argument)
{
	struct session *session = file->private_data;
	long result;

	if (!mutex_trylock(&session->lock))
		return -EBUSY;
	if (call == GODWIT_EPT_IOC_ATTACH)
		result = attach(session, (void __user *)argument);
	else
		result = on_vm(session->kvm, call, (void __user *)argument);
	mutex_unlock(&session->lock);
	return result;
}

static int device_open(struct inode *inode, struct file *file)
{
	struct session *session;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return -ENOMEM;
	mutex_init(&session->lock);
	INIT_LIST_HEAD(&session->link);
	file->private_data = session;
	return 0;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct session *session = file->private_data;

	mutex_lock(&sessions_lock);
	list_del(&session->link);
	mutex_unlock(&sessions_lock);
	if (session->kvm)
		kvm_put_kvm(session->kvm);
	kfree(session);
	return 0;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "godwit-ept",
	.fops = &device_operations,
	.mode = 0600,
};

static int __init godwit_ept_init(void)
{
	/* The ABI: these sizes are the same for every caller. */
	BUILD_BUG_ON(sizeof(struct godwit_ept_attach) != 16);
	BUILD_BUG_ON(sizeof(struct godwit_ept_info) != 40);
	BUILD_BUG_ON(sizeof(struct godwit_ept_slot) != 32);
	BUILD_BUG_ON(sizeof(struct godwit_ept_slots) != 24);
	BUILD_BUG_ON(sizeof(struct godwit_ept_scan) != 120);
	if (kernel_state() & GODWIT_EPT_UNTESTED)
		pr_notice(
			"this kernel is newer than those tested: only KVM's own aging is asked (read_tables=1 overrides)\n");
	return misc_register(&device);
}

static void __exit godwit_ept_exit(void)
{
	misc_deregister(&device);
}

module_init(godwit_ept_init);
module_exit(godwit_ept_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Accessed bits of the second-level page tables of KVM's VMs");
MODULE_INFO(tested, "6.1, 6.12");
