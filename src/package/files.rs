//! What installing package files touches in a guest, of the files that exist now: `.deb` with dpkg, `.rpm` with rpm.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::dpkg::{self, Admindir, Database, Plan, deb};
use super::installed;
use super::rpm::{PackageFile, Rpm, file, plan};
use super::touched::Touched;
use crate::report::{Reason, Shown};
use crate::sys::path::root::Root;

/// Why it is not known what package files touch.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened.
    #[error("{}: {}", Shown(path), Reason(source))]
    Unopened {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is of neither kind.
    #[error("{} is neither a .deb nor an .rpm", Shown(.0))]
    Unknown(PathBuf),
    /// A file begins as a .deb, and is none.
    #[error(transparent)]
    Deb(#[from] deb::Error),
    /// A file begins as an .rpm, and is none.
    #[error(transparent)]
    Rpm(#[from] file::Error),
    /// What is installed is not known.
    #[error(transparent)]
    Installed(#[from] installed::Error),
}

impl From<dpkg::Error> for Error {
    fn from(error: dpkg::Error) -> Error {
        Error::Installed(error.into())
    }
}

impl Error {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::Unopened { .. } => "check the name, and that it can be read, then try again",
            Error::Unknown(_) => {
                "name package files alone behind --package, and paths of the guest before it"
            }
            Error::Deb(_) | Error::Rpm(_) => "fetch the file again, or leave it out",
            Error::Installed(_) => {
                "repair the database of packages in the guest, or wait for its package manager to end"
            }
        }
    }
}

/// What installing `files`, paths of this process, touches in the guest at `root`. Its databases are in the usual places.
/// What the packages' scripts write elsewhere cannot be known from here.
///
/// # Errors
/// If a file cannot be read as a package, or what is installed is not known.
pub fn touched(root: &Root, files: &[PathBuf]) -> Result<Touched, Error> {
    let (mut debs, mut rpms) = (Vec::new(), Vec::new());
    for path in files {
        match Format::of(path)? {
            Format::Deb => debs.push(path.clone()),
            Format::Rpm => rpms.push(PackageFile::open(path)?),
        }
    }
    let mut touched = Touched::default();
    if !debs.is_empty() {
        let news = dpkg::plan::news(&debs)?;
        let Plan { paths, trees, non_directories, in_place, .. } =
            Plan::of(&Database::open(root, Admindir::usual())?, news)?;
        touched.add(Touched { paths, trees, non_directories, in_place, followed: Vec::new() });
    }
    if !rpms.is_empty() {
        touched.add(plan::replaced(&Rpm::new(root, None), &rpms)?);
        touched.add(plan::brought(&rpms));
    }
    Ok(touched.sorted())
}

/// A kind of package file.
enum Format {
    Deb,
    Rpm,
}

impl Format {
    /// What a file begins as, whatever it is called.
    fn of(path: &Path) -> Result<Format, Error> {
        let unopened = |source| Error::Unopened { path: path.to_path_buf(), source };
        let mut start = Vec::new();
        // Nobody may ever write to a pipe.
        if !std::fs::metadata(path).map_err(unopened)?.is_file() {
            return Err(unopened(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = std::fs::File::open(path).map_err(unopened)?;
        file.take(deb::MAGIC.len() as u64).read_to_end(&mut start).map_err(unopened)?;
        if start == deb::MAGIC {
            Ok(Format::Deb)
        } else if start.starts_with(&file::MAGIC) {
            Ok(Format::Rpm)
        } else {
            Err(Error::Unknown(path.to_path_buf()))
        }
    }
}
