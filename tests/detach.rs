//! Detaching: what the private copy is, and what the shared inode stays.
