//! The guard: BPF programs in the host's kernel that refuse every change of a marked inode
//! (`sys::share::mark`) and no change of its names.
