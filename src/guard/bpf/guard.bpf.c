// The guard: what the kernel asks before it changes a file, answered for marked inodes.
//
// A marked inode is a regular file with more than one name and the flag `noatime`, on a filesystem whose UUID is in the
// list below. Nobody changes its data or metadata; everybody may change its names. Flags change only with
// CAP_LINUX_IMMUTABLE in the initial user namespace.
//
// The programs fit any kernel: the loader moves each access to where the running kernel has the field (CO-RE). Here
// are only the fields that are used. They are read by plain loads, which the kernel makes safe, so that the programs
// load under lockdown=confidentiality, too; no helper that reads memory is used but for a name (see below).
//
// The hooks are those of include/linux/lsm_hook_defs.h; numbers and structures are of the kernel's uapi headers.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef _Bool bool;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	u8 b[16];
} uuid_t;

struct super_block {
	unsigned long s_magic;
	uuid_t s_uuid;
};

struct inode {
	unsigned short i_mode;
	unsigned int i_flags;
	struct super_block *i_sb;
	unsigned int i_nlink;
};

// Only its begin is looked at.
union shortname_store {
	unsigned char string[1];
};

struct dentry {
	struct inode *d_inode;
	// A short name: before Linux 6.14, and since.
	unsigned char d_iname[1];
	union shortname_store d_shortname;
};

struct path {
	struct dentry *dentry;
};

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct inode *f_inode;
	struct path f_path;
};

struct user_namespace {
	int level;
};

// Two words of 32 bits, or since Linux 6.3 one of 64: only the first 32 bits are looked at, which are the same.
struct capabilities {
	u32 words[2];
};

struct cred {
	struct capabilities cap_effective;
	struct user_namespace *user_ns;
};

struct task_struct {
	int pid;
	int tgid;
	const struct cred *real_cred;
	const struct cred *cred;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#if defined(ARCH_x86_64)
struct pt_regs {
	unsigned long cx;
	unsigned long si;
	unsigned long orig_ax;
};
#elif defined(ARCH_aarch64)
struct pt_regs {
	u64 regs[31];
	int syscallno;
};
#endif

#pragma clang attribute pop

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the first 32 bits of a set of capabilities are looked for at its begin"
#endif

static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;
static long (*const bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static long (*const bpf_seq_printf)(struct seq_file *to, const char *format, u32 size, const void *data,
				    u32 data_size) = (void *)126;
static struct pt_regs *(*const bpf_task_pt_regs)(struct task_struct *task) = (void *)175;

enum { EPERM = 1, ENODATA = 61 };
enum { S_IFMT = 0170000, S_IFREG = 0100000 };
enum { O_ACCMODE = 3, FMODE_WRITE = 2 };
enum { S_NOATIME = 2 };
enum { CAP_LINUX_IMMUTABLE = 9 };
enum { PROC_SUPER_MAGIC = 0x9fa0 };
// BPF_FIELD_EXISTS of the relocations.
enum { FIELD_EXISTS = 2 };

#define MAX_FILESYSTEMS 64

struct filesystem {
	u64 low;
	u64 high;
};

// UUIDs of the filesystems with pools, as super_block has them; the first that is zero ends the list. The loader fills
// it, and the kernel freezes it: no process can change it afterwards.
const volatile struct filesystem FILESYSTEMS[MAX_FILESYSTEMS] = {};

// Constants are no statics: aya 0.14 does not tell the kernel where in the section those are.

// The project is licensed MIT OR Apache-2.0; with the MIT license the kernel lends it the helpers that it keeps for GPL.
const char LICENSE[] SEC("license") = "Dual MIT/GPL";

INLINE bool is_guarded_filesystem(const struct super_block *sb)
{
	const u64 *uuid = (const void *)&sb->s_uuid;
	u64 low = uuid[0], high = uuid[1];

#pragma clang loop unroll(disable)
	for (u32 at = 0; at < MAX_FILESYSTEMS; at++) {
		u64 first = FILESYSTEMS[at].low, second = FILESYSTEMS[at].high;

		if (!(first | second))
			break;
		if (first == low && second == high)
			return 1;
	}
	return 0;
}

// Nearly no file has the flag: it is looked at first.
INLINE bool is_marked(const struct inode *inode)
{
	if (!(inode->i_flags & S_NOATIME))
		return 0;
	if ((inode->i_mode & S_IFMT) != S_IFREG || inode->i_nlink < 2)
		return 0;
	return is_guarded_filesystem(inode->i_sb);
}

INLINE bool has_capability(const struct cred *cred)
{
	const u32 *effective = (const void *)&cred->cap_effective;

	// Level 0 is the initial user namespace.
	return cred->user_ns->level == 0 && (*effective & (1u << CAP_LINUX_IMMUTABLE));
}

// Overlayfs acts with the credentials of its mounter, who has more rights than the caller: both must have this one.
INLINE bool may_change_flags(void)
{
	const struct task_struct *task = bpf_get_current_task_btf();

	return has_capability(task->real_cred) && has_capability(task->cred);
}

// The address of a field that is read otherwise than it is declared: aya lets a load of another size not be moved.
#define ADDRESS(field)                                 \
	({                                             \
		const void *address = &(field);        \
		asm volatile("" : "+r"(address));      \
		address;                               \
	})

// Whether a dentry of procfs is that of sysctl kernel.ftrace_enabled: 0 there stops all programs that hooks have, and
// every root of the initial user namespace may write it. No other file of procfs has the name.
INLINE bool is_off_switch(const struct dentry *dentry)
{
	const u64 *name;

	if (__builtin_preserve_field_info(dentry->d_iname, FIELD_EXISTS))
		name = ADDRESS(dentry->d_iname);
	else if (__builtin_preserve_field_info(dentry->d_shortname, FIELD_EXISTS))
		name = ADDRESS(dentry->d_shortname);
	else
		return 0;
	// "ftrace_e", "nabled" and the zero at the end; what follows may be anything.
	return name[0] == 0x655f656361727466 && (name[1] & 0xffffffffffffff) == 0x64656c62616e;
}

INLINE bool names_marked(const struct dentry *dentry)
{
	const struct inode *inode = dentry->d_inode;

	// It always is there; newer kernels want to see it asked.
	return inode && is_marked(inode);
}

INLINE int refuse_marked(const struct dentry *dentry)
{
	return names_marked(dentry) ? -EPERM : 0;
}

SEC("lsm/file_open") int file_open(u64 *ctx)
{
	const struct file *file = (const void *)ctx[0];
	const struct inode *inode;

	// Access mode 3 gives a descriptor that neither reads nor writes, but takes ioctl(2).
	if (!((file->f_flags & O_ACCMODE) | (file->f_mode & FMODE_WRITE)))
		return 0;
	// Not the path: on overlayfs it leads to another inode than the one that is written to.
	inode = file->f_inode;
	if (inode->i_sb->s_magic == PROC_SUPER_MAGIC)
		return is_off_switch(file->f_path.dentry) && !may_change_flags() ? -EPERM : 0;
	return is_marked(inode) ? -EPERM : 0;
}

// Mode, owner, size (truncate(2), too) and times. Later kernels put the mount's map of ids before the dentry.
SEC("lsm/inode_setattr_2") int inode_setattr_2(u64 *ctx)
{
	return refuse_marked((const void *)ctx[0]);
}

SEC("lsm/inode_setattr_3") int inode_setattr_3(u64 *ctx)
{
	return refuse_marked((const void *)ctx[1]);
}

SEC("lsm/inode_setxattr") int inode_setxattr(u64 *ctx)
{
	return refuse_marked((const void *)ctx[1]);
}

SEC("lsm/inode_set_acl") int inode_set_acl(u64 *ctx)
{
	return refuse_marked((const void *)ctx[1]);
}

SEC("lsm/inode_remove_acl") int inode_remove_acl(u64 *ctx)
{
	return refuse_marked((const void *)ctx[1]);
}

const char CAPABILITY[] = "security.capability";

// rpm removes the capabilities of a program before it replaces it; that there are none lets it go on.
SEC("lsm/inode_removexattr") int inode_removexattr(u64 *ctx)
{
	const struct dentry *dentry = (const void *)ctx[1];
	char name[sizeof(CAPABILITY)] = {};

	if (!names_marked(dentry))
		return 0;
	if (bpf_probe_read_kernel_str(name, sizeof(name), (const void *)ctx[2]) != sizeof(name))
		return -EPERM;
#pragma clang loop unroll(disable)
	for (u32 at = 0; at < sizeof(name); at++) {
		if (name[at] != CAPABILITY[at])
			return -EPERM;
	}
	return -ENODATA;
}

// The same for a kernel in lockdown=confidentiality, where no program can read the name.
SEC("lsm/inode_removexattr_locked") int inode_removexattr_locked(u64 *ctx)
{
	const struct dentry *dentry = (const void *)ctx[1];

	return names_marked(dentry) ? -ENODATA : 0;
}

// Types of commands that filesystems take: generic and ext4, xfs, generic and btrfs, versions, f2fs.
enum { TYPE_F = 'f', TYPE_X = 'X', TYPE_BTRFS = 0x94, TYPE_V = 'v', TYPE_F2FS = 0xf5 };

INLINE bool is_of_filesystem(u32 command)
{
	u8 type = command >> 8;

	return type == TYPE_F || type == TYPE_X || type == TYPE_BTRFS || type == TYPE_V || type == TYPE_F2FS;
}

// Of a command, what tells it from others: type and number.
#define KIND(type, number) ((u32)(type) << 8 | (number))
#define READS(command) (((command) >> 30 & 3) == 2)

// What is known to change nothing. A number that one direction uses to read and the other to write has READS.
INLINE bool only_reads(u32 command)
{
	switch (command & 0xffff) {
	case KIND(TYPE_F, 1): // FS_IOC_GETFLAGS
	case KIND(TYPE_F, 3): // EXT4_IOC_GETVERSION
	case KIND(TYPE_F, 5): // EXT4_IOC_GETRSVSZ
	case KIND(TYPE_F, 11): // FS_IOC_FIEMAP
	case KIND(TYPE_F, 22): // FS_IOC_GET_ENCRYPTION_POLICY_EX
	case KIND(TYPE_F, 26): // FS_IOC_GET_ENCRYPTION_KEY_STATUS
	case KIND(TYPE_F, 27): // FS_IOC_GET_ENCRYPTION_NONCE
	case KIND(TYPE_F, 41): // EXT4_IOC_GETSTATE
	case KIND(TYPE_F, 42): // EXT4_IOC_GET_ES_CACHE
	case KIND(TYPE_F, 134): // FS_IOC_MEASURE_VERITY
	case KIND(TYPE_F, 135): // FS_IOC_READ_VERITY_METADATA
	case KIND(TYPE_V, 1): // FS_IOC_GETVERSION
	case KIND(TYPE_X, 30): // XFS_IOC_DIOINFO
	case KIND(TYPE_X, 31): // FS_IOC_FSGETXATTR
	case KIND(TYPE_X, 38): // XFS_IOC_GETBMAP
	case KIND(TYPE_X, 44): // XFS_IOC_GETBMAPA
	case KIND(TYPE_X, 45): // XFS_IOC_FSGETXATTRA
	case KIND(TYPE_X, 56): // XFS_IOC_GETBMAPX
	case KIND(TYPE_X, 59): // FS_IOC_GETFSMAP
	case KIND(TYPE_X, 100): // XFS_IOC_FSGEOMETRY_V1
	case KIND(TYPE_X, 106): // XFS_IOC_FD_TO_HANDLE
	case KIND(TYPE_X, 113): // XFS_IOC_FSCOUNTS
	case KIND(TYPE_X, 124): // XFS_IOC_FSGEOMETRY_V4
	case KIND(TYPE_X, 126): // XFS_IOC_FSGEOMETRY
	case KIND(TYPE_BTRFS, 17): // BTRFS_IOC_TREE_SEARCH
	case KIND(TYPE_BTRFS, 18): // BTRFS_IOC_INO_LOOKUP
	case KIND(TYPE_BTRFS, 30): // BTRFS_IOC_DEV_INFO
	case KIND(TYPE_BTRFS, 31): // BTRFS_IOC_FS_INFO
	case KIND(TYPE_BTRFS, 49): // FS_IOC_GETFSLABEL
	case KIND(TYPE_BTRFS, 60): // BTRFS_IOC_GET_SUBVOL_INFO
		return 1;
	case KIND(TYPE_F, 44): // EXT4_IOC_GETFSUUID, and EXT4_IOC_SETFSUUID
		return READS(command);
	}
	return 0;
}

INLINE bool sets_flags(u32 command)
{
	u32 kind = command & 0xffff;

	// FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR.
	return kind == KIND(TYPE_F, 2) || kind == KIND(TYPE_X, 32);
}

// What changes another inode than that of the descriptor, or the UUID that the list has.
INLINE bool reaches_others(u32 command)
{
	switch (command & 0xffff) {
	case KIND(TYPE_F, 44): // EXT4_IOC_SETFSUUID
		return !READS(command);
	case KIND(TYPE_X, 60): // XFS_IOC_SCRUB_METADATA, which can repair
	case KIND(TYPE_X, 64): // XFS_IOC_SCRUBV_METADATA
	case KIND(TYPE_X, 123): // XFS_IOC_ATTRMULTI_BY_HANDLE
		return 1;
	}
	return 0;
}

INLINE int answer_command(const struct file *file, u32 command)
{
	const struct inode *inode;

	if (!is_of_filesystem(command) || only_reads(command))
		return 0;
	inode = file->f_inode;
	if (is_marked(inode))
		return sets_flags(command) && may_change_flags() ? 0 : -EPERM;
	if (reaches_others(command) && is_guarded_filesystem(inode->i_sb))
		return may_change_flags() ? 0 : -EPERM;
	return 0;
}

SEC("lsm/file_ioctl") int file_ioctl(u64 *ctx)
{
	return answer_command((const void *)ctx[0], ctx[1]);
}

// Of programs of 32 bits; kernels without this hook ask the other.
SEC("lsm/file_ioctl_compat") int file_ioctl_compat(u64 *ctx)
{
	return answer_command((const void *)ctx[0], ctx[1]);
}

// Flags, by any call, asked while the inode is locked.
SEC("lsm/inode_file_setattr") int inode_file_setattr(u64 *ctx)
{
	const struct dentry *dentry = (const void *)ctx[0];

	return names_marked(dentry) && !may_change_flags() ? -EPERM : 0;
}

// quotactl(2) can make a file the one with the quotas of its filesystem: the kernel writes to it without an open.
SEC("lsm/quota_on") int quota_on(u64 *ctx)
{
	return refuse_marked((const void *)ctx[0]);
}

#if defined(ARCH_x86_64) || defined(ARCH_aarch64)

INLINE bool may_change(u32 command)
{
	return is_of_filesystem(command) && !only_reads(command);
}

// Whether a task is, or was at last, in an ioctl(2) that may change a file. Registers of a system call stay where they
// are while it lasts, and until the task's next; too many are found, but not too few.
INLINE bool may_be_changing(const struct pt_regs *regs)
{
#if defined(ARCH_x86_64)
	// The bit is that of x32.
	switch ((u32)regs->orig_ax & ~0x40000000) {
	case 16: // x86-64
	case 514: // x32
		return may_change(regs->si);
	case 54: // i386
		return may_change(regs->cx);
	}
	return 0;
#else
	int number = regs->syscallno;

	// 64 bits; 32 bits.
	return (number == 29 || number == 54) && may_change(regs->regs[1]);
#endif
}

const char LINE[] = "%d %d\n";

// Lists tasks that may be about to change a file's flags although the hook has let them pass: it is asked before the
// inode is locked, so a mark that is set meanwhile does not stop them. `PID TID` each, as the initial namespace
// numbers them.
SEC("iter/task") int flag_changes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	u64 numbers[2];

	if (!task)
		return 0;
	if (!may_be_changing(bpf_task_pt_regs(task)))
		return 0;
	numbers[0] = task->tgid;
	numbers[1] = task->pid;
	bpf_seq_printf(ctx->meta->seq, LINE, sizeof(LINE), numbers, sizeof(numbers));
	return 0;
}

#endif
