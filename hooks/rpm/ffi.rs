//! The one place that speaks rpm's C plugin API; everything behind it is safe.
//!
//! It is the second place with unsafe code beside `sys`: rpm calls these functions with raw pointers and is called back
//! through them. It makes no system call and touches no file, so it is no part of `sys`.
//!
//! Nothing of librpm is linked: rpm has loaded it, under one of several names, and a Python that uses it (dnf 4) keeps
//! its symbols to itself. So they are looked up in the library that is loaded already. The API is rpm's
//! `include/rpm/rpmplugin.h` (`lib/rpmplugin.h` before 4.20); the order of its hooks is the same from 4.14 to 6.

#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use crate::hook::SWITCH;

/// `rpmPlugin`, `rpmts`, `rpmte`, `rpmtsi`, `rpmfi`, `rpmfiles`: rpm's, never looked into.
type Handle = *mut c_void;
/// `rpmRC`.
type RpmRc = c_int;
const OK: RpmRc = 0;
const NOT_FOUND: RpmRc = 1;
const FAIL: RpmRc = 2;

/// `RPMTRANS_FLAG_TEST`, `_BUILD_PROBS` and `_JUSTDB`: no file is touched.
const FLAGS_WITHOUT_FILES: u32 = 1 | 1 << 1 | 1 << 3;
/// `RPMFILE_CONFIG` and `RPMFILE_GHOST`.
const FILE_CONFIG: u32 = 1;
const FILE_GHOST: u32 = 1 << 6;
/// `FAF_UNOWNED`: a directory that no package of the transaction lists.
const UNOWNED: u32 = 1 << 31;
/// `TR_ADDED`.
const ADDED: c_int = 1;

/// A plugin: what rpm calls, in rpm's words. One lives as long as a transaction set.
pub trait Plugin: Sized {
    /// Made for the transaction set; none to take no part.
    fn new(root: &Path, options: &str) -> Option<Self>;
    /// `tsm_pre`: before anything of the guest is touched. The only hook that may refuse. `false` refuses.
    fn transaction_begins(&mut self, transaction: &Transaction<'_>) -> bool;
    /// `tsm_post`: all is done, or has failed.
    fn transaction_ended(&mut self, failed: &[OsString]);
    /// `psm_pre`: this package comes next.
    fn package_begins(&mut self, _nevra: &OsStr) {}
    /// `fsm_file_pre`: this file comes next; inside the chroot, if there is one.
    fn file_begins(&mut self, _path: &Path, _action: Action) {}
}

/// What rpm is about to do to a file (`rpmFileAction`), as far as it touches what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Replaces or removes it.
    Replace,
    /// Renames it to `.rpmorig`.
    Backup,
    /// Renames it to `.rpmsave`.
    Save,
    /// Leaves it, and replaces `.rpmnew`.
    AltName,
    /// Changes owner, mode and times in place, through symlinks.
    Touch,
}

impl Action {
    fn of(op: u32) -> Option<Action> {
        if op & UNOWNED != 0 {
            return None;
        }
        match op & 0xffff {
            1 | 8 => Some(Action::Replace),
            4 => Some(Action::Backup),
            5 => Some(Action::Save),
            7 => Some(Action::AltName),
            12 => Some(Action::Touch),
            // Skipped, or unknown: rpm does not touch it.
            _ => None,
        }
    }
}

/// A package of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Name, epoch, version, release and architecture.
    pub nevra: OsString,
    /// Its files are installed; else removed, or restored.
    pub is_added: bool,
    /// All it lists.
    pub files: Vec<Listed>,
}

/// A file that a package lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its path in the guest.
    pub path: PathBuf,
    /// A regular file, not a directory or symlink.
    pub is_regular: bool,
    /// A configuration file.
    pub is_config: bool,
    /// Not in the package's payload: made by scripts or programs.
    pub is_ghost: bool,
}

/// A transaction that rpm is about to run.
#[derive(Debug)]
pub struct Transaction<'a> {
    api: &'a Api,
    handle: Handle,
}

impl Transaction<'_> {
    /// Whether files will be touched at all: not with `--test` or `--justdb`.
    pub fn touches_files(&self) -> bool {
        // SAFETY: the handle is the one rpm called the hook with.
        unsafe { (self.api.rpmtsFlags)(self.handle) & FLAGS_WITHOUT_FILES == 0 }
    }

    /// Its packages.
    pub fn elements(&self) -> Vec<Element> {
        let mut elements = Vec::new();
        self.each(|te| elements.push(self.element(te)));
        elements
    }

    /// rpm's own database, as a path of the guest (`%{_dbpath}`).
    pub fn database(&self) -> PathBuf {
        // SAFETY: a list of strings, ended by a null pointer; what comes back is ours to free.
        let expanded = unsafe { owned((self.api.rpmExpand)(c"%{_dbpath}".as_ptr(), null::<c_char>())) };
        PathBuf::from(expanded.unwrap_or_default())
    }

    /// The packages that could not be installed or removed.
    fn failed(&self) -> Vec<OsString> {
        let mut failed = Vec::new();
        self.each(|te| {
            // SAFETY: an element of this transaction, for as long as it is iterated.
            if unsafe { (self.api.rpmteFailed)(te) } != 0 {
                failed.push(self.nevra(te));
            }
        });
        failed
    }

    fn each(&self, mut visit: impl FnMut(Handle)) {
        // SAFETY: as rpmts.h says: initialised, asked until it gives null, freed.
        unsafe {
            let iterator = (self.api.rpmtsiInit)(self.handle);
            loop {
                let te = (self.api.rpmtsiNext)(iterator, 0);
                if te.is_null() {
                    break;
                }
                visit(te);
            }
            (self.api.rpmtsiFree)(iterator);
        }
    }

    fn nevra(&self, te: Handle) -> OsString {
        // SAFETY: an element of this transaction; the string is the element's.
        unsafe { borrowed((self.api.rpmteNEVRA)(te)) }.unwrap_or_default()
    }

    fn element(&self, te: Handle) -> Element {
        let api = self.api;
        // SAFETY: an element of this transaction. Its list of files is a reference of its own, freed at the end; each
        // name is allocated for the caller.
        let (kind, files) = unsafe {
            let files = (api.rpmteFiles)(te);
            let count = c_int::try_from((api.rpmfilesFC)(files)).unwrap_or(0);
            let listed = (0..count).filter_map(|index| {
                let path = PathBuf::from(owned((api.rpmfilesFN)(files, index))?);
                let mode = u32::from((api.rpmfilesFMode)(files, index));
                let flags = (api.rpmfilesFFlags)(files, index);
                Some(Listed {
                    path,
                    is_regular: mode & libc::S_IFMT == libc::S_IFREG,
                    is_config: flags & FILE_CONFIG != 0,
                    is_ghost: flags & FILE_GHOST != 0,
                })
            });
            let listed = listed.collect();
            (api.rpmfilesFree)(files);
            ((api.rpmteType)(te), listed)
        };
        Element { nevra: self.nevra(te), is_added: kind == ADDED, files }
    }
}

/// What is used of librpm and librpmio; the names are theirs.
#[derive(Debug)]
#[allow(non_snake_case)]
struct Api {
    rpmPluginOpts: unsafe extern "C" fn(Handle) -> *const c_char,
    rpmPluginSetData: unsafe extern "C" fn(Handle, *mut c_void),
    rpmPluginGetData: unsafe extern "C" fn(Handle) -> *mut c_void,
    rpmtsFlags: unsafe extern "C" fn(Handle) -> u32,
    rpmtsRootDir: unsafe extern "C" fn(Handle) -> *const c_char,
    rpmtsiInit: unsafe extern "C" fn(Handle) -> Handle,
    rpmtsiNext: unsafe extern "C" fn(Handle, u32) -> Handle,
    rpmtsiFree: unsafe extern "C" fn(Handle) -> Handle,
    rpmteNEVRA: unsafe extern "C" fn(Handle) -> *const c_char,
    rpmteType: unsafe extern "C" fn(Handle) -> c_int,
    rpmteFailed: unsafe extern "C" fn(Handle) -> c_int,
    rpmteFiles: unsafe extern "C" fn(Handle) -> Handle,
    rpmfilesFC: unsafe extern "C" fn(Handle) -> u32,
    rpmfilesFN: unsafe extern "C" fn(Handle, c_int) -> *mut c_char,
    rpmfilesFFlags: unsafe extern "C" fn(Handle, c_int) -> u32,
    rpmfilesFMode: unsafe extern "C" fn(Handle, c_int) -> u16,
    rpmfilesFree: unsafe extern "C" fn(Handle) -> Handle,
    rpmfiFN: unsafe extern "C" fn(Handle) -> *const c_char,
    rpmExpand: unsafe extern "C" fn(*const c_char, ...) -> *mut c_char,
}

impl Api {
    /// The API of the librpm in this process, if it is one that is known.
    fn of_process() -> Option<&'static Api> {
        static API: OnceLock<Option<Api>> = OnceLock::new();
        API.get_or_init(Api::look_up).as_ref()
    }

    fn look_up() -> Option<Api> {
        // SAFETY: `RTLD_NOLOAD` only finds what is loaded; strings are null-terminated.
        let library = [c"librpm.so.10", c"librpm.so.9", c"librpm.so.8"]
            .map(|name| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) })
            .into_iter()
            .find(|library| !library.is_null())?;
        // SAFETY: `RPMVERSION` is a variable that holds a string; dlsym gives the variable's address.
        let version = unsafe {
            let variable = libc::dlsym(library, c"RPMVERSION".as_ptr()).cast::<*const c_char>();
            if variable.is_null() { None } else { borrowed(*variable) }
        };
        if !version.is_some_and(|version| is_known(&version)) {
            return None;
        }
        macro_rules! api {
            ($($name:ident)*) => {
                // SAFETY: the function of each name has its field's type in all known versions.
                Api { $($name: unsafe { symbol(library, concat!(stringify!($name), "\0")) }?),* }
            };
        }
        Some(api! {
            rpmPluginOpts rpmPluginSetData rpmPluginGetData rpmtsFlags rpmtsRootDir rpmtsiInit rpmtsiNext rpmtsiFree
            rpmteNEVRA rpmteType rpmteFailed rpmteFiles rpmfilesFC rpmfilesFN rpmfilesFFlags rpmfilesFMode
            rpmfilesFree rpmfiFN rpmExpand
        })
    }
}

/// The function of this name; none where the library has none.
///
/// # Safety
/// `name` ends in a null byte, and `F` is the type of the function.
unsafe fn symbol<F: Copy>(library: Handle, name: &str) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<Handle>()) };
    // SAFETY: a null-terminated name; an address is a function pointer, of the type the caller vouches for.
    unsafe {
        let address = libc::dlsym(library, name.as_ptr().cast());
        (!address.is_null()).then(|| std::mem::transmute_copy::<Handle, F>(&address))
    }
}

/// Whether the plugin API of this version is known: 4.14 to 6.
fn is_known(version: &OsStr) -> bool {
    let mut numbers = version.as_bytes().split(|&byte| byte == b'.').map(|part| {
        let digits = part.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
    });
    matches!((numbers.next(), numbers.next()), (Some(4), Some(14..)) | (Some(5 | 6), _))
}

/// A copy of a C string that belongs to somebody else; none for a null pointer.
///
/// # Safety
/// `string` is null or a null-terminated string.
unsafe fn borrowed(string: *const c_char) -> Option<OsString> {
    if string.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    let bytes = unsafe { CStr::from_ptr(string) }.to_bytes();
    Some(OsString::from_vec(bytes.to_vec()))
}

/// A copy of a C string that was allocated for us, which is freed.
///
/// # Safety
/// `string` is null or a null-terminated string that `free` may be called on.
unsafe fn owned(string: *mut c_char) -> Option<OsString> {
    // SAFETY: as the caller vouches.
    unsafe {
        let copy = borrowed(string);
        libc::free(string.cast());
        copy
    }
}

type OfTransaction = unsafe extern "C" fn(Handle, Handle) -> RpmRc;
type OfTransactionEnd = unsafe extern "C" fn(Handle, Handle, c_int) -> RpmRc;
type OfFile = unsafe extern "C" fn(Handle, Handle, *const c_char, libc::mode_t, u32) -> RpmRc;
type Unused = Option<unsafe extern "C" fn()>;

/// `struct rpmPluginHooks_s`, with room behind it: what a later rpm appends is null.
#[derive(Debug)]
#[repr(C)]
pub struct Hooks {
    init: Option<OfTransaction>,
    cleanup: Option<unsafe extern "C" fn(Handle)>,
    tsm_pre: Option<OfTransaction>,
    tsm_post: Option<OfTransactionEnd>,
    psm_pre: Option<OfTransaction>,
    psm_post: Unused,
    scriptlet_pre: Unused,
    scriptlet_fork_post: Unused,
    scriptlet_post: Unused,
    fsm_file_pre: Option<OfFile>,
    fsm_file_post: Unused,
    /// Never used: its arguments changed with 4.18, and nothing else did.
    fsm_file_prepare: Unused,
    later: [Unused; 12],
}

/// The hooks of a plugin, for the symbol that rpm looks up: the plugin's name and `_hooks`.
pub const fn hooks<P: Plugin>() -> Hooks {
    Hooks {
        init: Some(init::<P>),
        cleanup: Some(cleanup::<P>),
        tsm_pre: Some(tsm_pre::<P>),
        tsm_post: Some(tsm_post::<P>),
        psm_pre: Some(psm_pre::<P>),
        psm_post: None,
        scriptlet_pre: None,
        scriptlet_fork_post: None,
        scriptlet_post: None,
        fsm_file_pre: Some(fsm_file_pre::<P>),
        fsm_file_post: None,
        fsm_file_prepare: None,
        later: [None; 12],
    }
}

/// What `work` returns; `otherwise` if it panics, which must not unwind into rpm.
fn guarded(hook: &str, otherwise: RpmRc, work: impl FnOnce() -> RpmRc) -> RpmRc {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!(
            "rpm's plugin has crashed in {hook}; to run rpm without it, set {SWITCH}=off in the \
            environment"
        );
        otherwise
    })
}

/// The plugin's own state; none where `init` made none.
///
/// # Safety
/// `plugin` is what rpm called a hook with, and rpm calls one hook of a plugin at a time.
unsafe fn state<'p, P: Plugin>(plugin: Handle) -> Option<(&'p mut P, &'static Api)> {
    let api = Api::of_process()?;
    // SAFETY: only `init` sets the pointer, to a box of this type, and only `cleanup` takes it.
    unsafe { (api.rpmPluginGetData)(plugin).cast::<P>().as_mut().map(|state| (state, api)) }
}

unsafe extern "C" fn init<P: Plugin>(plugin: Handle, ts: Handle) -> RpmRc {
    guarded("init", NOT_FOUND, || {
        let Some(api) = Api::of_process() else { return NOT_FOUND };
        // SAFETY: rpm calls with its own handles; the strings are theirs.
        let (root, options) =
            unsafe { (borrowed((api.rpmtsRootDir)(ts)), borrowed((api.rpmPluginOpts)(plugin))) };
        let root = PathBuf::from(root.unwrap_or_else(|| OsString::from("/")));
        let Some(state) = P::new(&root, &options.unwrap_or_default().to_string_lossy()) else {
            return NOT_FOUND;
        };
        // SAFETY: the pointer is a box's, taken back by `cleanup`.
        unsafe { (api.rpmPluginSetData)(plugin, Box::into_raw(Box::new(state)).cast()) };
        OK
    })
}

unsafe extern "C" fn cleanup<P: Plugin>(plugin: Handle) {
    guarded("cleanup", OK, || {
        // SAFETY: as in `state`; the pointer is cleared before the box goes.
        unsafe {
            if let Some((state, api)) = state::<P>(plugin) {
                (api.rpmPluginSetData)(plugin, null_mut());
                drop(Box::from_raw(std::ptr::from_mut(state)));
            }
        }
        OK
    });
}

unsafe extern "C" fn tsm_pre<P: Plugin>(plugin: Handle, ts: Handle) -> RpmRc {
    // Nothing is touched yet: to refuse is the safe way out.
    guarded("tsm_pre", FAIL, || {
        // SAFETY: rpm's own handles.
        let Some((state, api)) = (unsafe { state::<P>(plugin) }) else { return OK };
        if state.transaction_begins(&Transaction { api, handle: ts }) { OK } else { FAIL }
    })
}

unsafe extern "C" fn tsm_post<P: Plugin>(plugin: Handle, ts: Handle, _result: c_int) -> RpmRc {
    guarded("tsm_post", OK, || {
        // SAFETY: rpm's own handles.
        if let Some((state, api)) = unsafe { state::<P>(plugin) } {
            state.transaction_ended(&Transaction { api, handle: ts }.failed());
        }
        OK
    })
}

unsafe extern "C" fn psm_pre<P: Plugin>(plugin: Handle, te: Handle) -> RpmRc {
    guarded("psm_pre", OK, || {
        // SAFETY: rpm's own handles.
        let Some((state, api)) = (unsafe { state::<P>(plugin) }) else { return OK };
        // SAFETY: the string is the element's.
        let nevra = unsafe { borrowed((api.rpmteNEVRA)(te)) };
        state.package_begins(&nevra.unwrap_or_default());
        OK
    })
}

/// Never fails: rpm would delete unchanged configuration files of the package.
unsafe extern "C" fn fsm_file_pre<P: Plugin>(
    plugin: Handle,
    file: Handle,
    _path: *const c_char,
    _mode: libc::mode_t,
    op: u32,
) -> RpmRc {
    guarded("fsm_file_pre", OK, || {
        // A directory that nobody owns has no file.
        let Some(action) = Action::of(op).filter(|_| !file.is_null()) else { return OK };
        // SAFETY: rpm's own handles.
        let Some((state, api)) = (unsafe { state::<P>(plugin) }) else { return OK };
        // SAFETY: the name is the file's, until the next one is asked for.
        if let Some(path) = unsafe { borrowed((api.rpmfiFN)(file)) } {
            state.file_begins(Path::new(&path), action);
        }
        OK
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_a_known_api_are_4_14_to_6() {
        for version in ["4.14.0", "4.16.1.2", "4.18.0", "4.20.1", "5.99.90", "6.1.0-rc2"] {
            assert!(is_known(OsStr::new(version)), "{version}");
        }
        for version in ["4.13.1", "4", "7.0.0", "", "x", "99999999999"] {
            assert!(!is_known(OsStr::new(version)), "{version}");
        }
    }

    #[test]
    fn what_rpm_skips_is_no_action() {
        let skipped = [0, 2, 3, 6, 9, 10, 11, 13, 1 | UNOWNED];
        assert!(skipped.into_iter().all(|op| Action::of(op).is_none()));
        assert_eq!(Action::of(12), Some(Action::Touch));
    }

    #[test]
    fn a_panic_does_not_leave_a_hook() {
        assert_eq!(guarded("test", FAIL, || panic!("on purpose")), FAIL);
        assert_eq!(guarded("test", FAIL, || OK), OK);
    }

    #[test]
    fn without_rpm_there_is_no_api() {
        assert!(Api::look_up().is_none());
    }
}
