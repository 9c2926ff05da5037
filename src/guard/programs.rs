//! The programs in the object that `build.rs` compiles: which fit the running kernel, and how they get into it.

use std::collections::HashMap;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{Iter, Lsm, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};

use super::{Error, Refusal, kernel, pins};
use crate::sys::file::uuid::Uuid;

/// The compiled `guard.bpf.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard.bpf.o"));

/// How many filesystems can be guarded: `MAX_FILESYSTEMS` of `guard.bpf.c`.
const MAX_FILESYSTEMS: usize = 64;
/// Lists tasks in calls that change flags.
const FLAG_CHANGES: &str = "flag_changes";

/// A question that the kernel asks.
struct Hook {
    name: &'static str,
    /// The program for each number of parameters that the hook has or had.
    programs: &'static [(u32, &'static str)],
    /// Every kernel asks it; others came later, and earlier kernels ask another hook instead.
    always: bool,
    /// The program to take if the kernel does not let the first one read a string.
    under_lockdown: Option<&'static str>,
}

const fn hook(name: &'static str, programs: &'static [(u32, &'static str)], always: bool) -> Hook {
    Hook { name, programs, always, under_lockdown: None }
}

const HOOKS: [Hook; 10] = [
    hook("file_open", &[(1, "file_open")], true),
    hook("inode_setattr", &[(2, "inode_setattr_2"), (3, "inode_setattr_3")], true),
    hook("inode_setxattr", &[(6, "inode_setxattr")], true),
    Hook {
        under_lockdown: Some("inode_removexattr_locked"),
        ..hook("inode_removexattr", &[(3, "inode_removexattr")], true)
    },
    // Linux 6.2; before, inode_setxattr and inode_removexattr.
    hook("inode_set_acl", &[(4, "inode_set_acl")], false),
    hook("inode_remove_acl", &[(3, "inode_remove_acl")], false),
    hook("file_ioctl", &[(3, "file_ioctl")], true),
    // Linux 6.8; before, file_ioctl.
    hook("file_ioctl_compat", &[(3, "file_ioctl_compat")], false),
    // Linux 6.17; before, file_ioctl.
    hook("inode_file_setattr", &[(2, "inode_file_setattr")], false),
    hook("quota_on", &[(1, "quota_on")], true),
];

impl Hook {
    /// The program for a kernel with these hooks; none if it asks another hook.
    fn program(&self, hooks: &HashMap<String, u32>) -> Result<Option<&'static str>, Error> {
        let Some(parameters) = hooks.get(self.name) else {
            return if self.always { Err(Error::NoHook { hook: self.name }) } else { Ok(None) };
        };
        let found = self.programs.iter().find(|(number, _)| number == parameters);
        let unknown = Error::UnknownHook { hook: self.name, parameters: *parameters };
        found.map(|(_, program)| Some(*program)).ok_or(unknown)
    }
}

/// The hooks that are known, and whether this kernel asks them.
///
/// # Errors
/// If the kernel does not show its types.
pub fn hooks() -> std::io::Result<Vec<(&'static str, bool)>> {
    let there = kernel::hooks()?;
    Ok(HOOKS.iter().map(|hook| (hook.name, there.contains_key(hook.name))).collect())
}

/// Programs in the kernel that no hook has yet.
pub(super) struct Loaded {
    object: Ebpf,
    /// The hooks and their programs.
    hooks: Vec<(&'static str, &'static str)>,
    /// Tasks that change flags can be listed.
    lists_tasks: bool,
}

impl Loaded {
    /// Loads the programs that this kernel needs, with the list of filesystems frozen.
    ///
    /// # Errors
    /// If the kernel cannot run them all: a part of them would protect nothing.
    pub(super) fn load(filesystems: &[Uuid]) -> Result<Loaded, Error> {
        let list = list(filesystems)?;
        let there = kernel::hooks().map_err(Error::NoTypes)?;
        let types = Btf::from_sys_fs().map_err(Error::Types)?;
        let object = EbpfLoader::new()
            .btf(Some(&types))
            .override_global("FILESYSTEMS", list.as_slice(), true)
            .load(OBJECT)
            .map_err(|e| Error::Object(Box::new(e)))?;
        let mut loaded = Loaded { object, hooks: Vec::new(), lists_tasks: false };
        for hook in &HOOKS {
            if let Some(program) = hook.program(&there)? {
                let program = loaded.load_hook(hook, program, &types)?;
                loaded.hooks.push((hook.name, program));
            }
        }
        match loaded.load_list(&types) {
            Ok(()) => loaded.lists_tasks = true,
            // Needed for adoption alone, which then copies.
            Err(e) => log::debug!("{FLAG_CHANGES}: {}", Refusal::of(&e)),
        }
        Ok(loaded)
    }

    /// Loads a hook's program, or the one for a kernel that is locked down; returns which.
    fn load_hook(&mut self, hook: &Hook, first: &'static str, types: &Btf) -> Result<&'static str, Error> {
        let mut refused = None;
        for program in [first].into_iter().chain(hook.under_lockdown) {
            match self.lsm(program).and_then(|found| found.load(hook.name, types)) {
                Ok(()) => return Ok(program),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        let source = Box::new(refused.unwrap_or(ProgramError::NotLoaded));
        Err(Error::Refused { program: first, source })
    }

    fn load_list(&mut self, types: &Btf) -> Result<(), ProgramError> {
        self.list()?.load("task", types)
    }

    fn lsm(&mut self, name: &str) -> Result<&mut Lsm, ProgramError> {
        self.object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    fn list(&mut self) -> Result<&mut Iter, ProgramError> {
        self.object.program_mut(FLAG_CHANGES).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    /// Attaches all programs, and gives each a name in `dir` that keeps it attached.
    pub(super) fn pin(mut self, dir: &Path) -> Result<(), Error> {
        for (hook, program) in std::mem::take(&mut self.hooks) {
            let attached = self.lsm(program).and_then(|lsm| {
                let id = lsm.attach()?;
                lsm.take_link(id)
            });
            let link = attached.map_err(|e| Error::Refused { program, source: Box::new(e) })?;
            pin(FdLink::from(link), dir, hook)?;
        }
        if self.lists_tasks {
            let attached = self.list().and_then(|list| {
                let id = list.attach()?;
                list.take_link(id)
            });
            let refused = |e| Error::Refused { program: FLAG_CHANGES, source: Box::new(e) };
            let link = FdLink::try_from(attached.map_err(refused)?).map_err(|e| Error::Link(Box::new(e)))?;
            pin(link, dir, pins::FLAG_CHANGES)?;
        }
        Ok(())
    }
}

fn pin(link: FdLink, dir: &Path, name: &str) -> Result<(), Error> {
    let path = dir.join(name);
    link.pin(&path).map(drop).map_err(|source| Error::Pin { path, source })
}

/// The list as the programs have it: zeros end it.
fn list(filesystems: &[Uuid]) -> Result<[u8; MAX_FILESYSTEMS * 16], Error> {
    let mut list = [0; MAX_FILESYSTEMS * 16];
    if filesystems.len() > MAX_FILESYSTEMS {
        return Err(Error::TooMany { most: MAX_FILESYSTEMS, filesystems: filesystems.len() });
    }
    for (place, uuid) in list.chunks_exact_mut(16).zip(filesystems) {
        place.copy_from_slice(&uuid.bytes());
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_a_program_for_every_hook_and_signature() {
        let all = HOOKS.iter().flat_map(|hook| hook.programs.iter().map(|(_, program)| *program));
        let all = all.chain(HOOKS.iter().filter_map(|hook| hook.under_lockdown)).chain([FLAG_CHANGES]);
        for program in all {
            assert!(OBJECT.windows(program.len()).any(|part| part == program.as_bytes()), "{program}");
        }
    }

    #[test]
    fn a_kernel_gets_the_program_that_fits_its_hook() {
        let of = |parameters| HashMap::from([("inode_setattr".to_owned(), parameters)]);
        let setattr = &HOOKS[1];
        assert_eq!(setattr.program(&of(2)).unwrap(), Some("inode_setattr_2"));
        assert_eq!(setattr.program(&of(3)).unwrap(), Some("inode_setattr_3"));
        assert!(matches!(setattr.program(&of(4)), Err(Error::UnknownHook { .. })));
        assert!(matches!(setattr.program(&HashMap::new()), Err(Error::NoHook { .. })));
        assert_eq!(HOOKS[4].program(&of(2)).unwrap(), None);
    }
}
